//! Acts out a scenario's steps.

use std::time::Duration;

use attic_p2p::replica::Event;

use crate::sim::agenda::Note;
use crate::sim::content::ThingIndex;
use crate::sim::host::{Index, State};
use crate::sim::link::Weather;
use crate::sim::mutant::Mutant;
use crate::sim::scenario::{Churn, Crash, Network, Scale, Scenario, Skew, Step, Who};
use crate::sim::world::{Happening, World};

/// What is left to be done, and until when.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) scale: Scale,
    /// When the last thing that disturbs happens, as far as is known.
    pub(crate) last_act: Duration,
    /// How long it may take from then on until everything is settled.
    pub(crate) patience: Duration,
    pub(crate) linger: Duration,
    /// Paths that steps pushed, to be fetched or removed by later ones.
    pub(crate) pushed: Vec<ThingIndex>,
}

impl Script {
    pub(crate) fn deadline(&self) -> Duration {
        self.last_act + self.patience + self.linger
    }
}

/// One thing that is done to the world.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Step(Box<Step>),
    Push { by: Index, size: u64 },
    Want { by: Index, things: Vec<ThingIndex> },
    Remove { by: Index },
    Start(Index),
    Crash { who: Index, power: bool },
    Wake { who: Index, slept: Duration },
}

impl World {
    /// Plans what a scenario says.
    pub(crate) fn plan(&mut self, scenario: &Scenario) {
        for step in &scenario.steps {
            self.act_at(
                step.at.at(self.script.scale).0,
                Act::Step(Box::new(step.clone())),
            );
        }
    }

    fn act_at(&mut self, at: Duration, act: Act) {
        self.script.last_act = self.script.last_act.max(at);
        self.agenda.at(at, Happening::Act(act));
    }

    pub(crate) fn act_out(&mut self, act: Act) {
        self.oracle.settled_at = None;
        match act {
            Act::Step(step) => {
                self.note(Note::Step, [0; 3]);
                self.act_out_step(&step);
            }
            Act::Push { by, size } => {
                let thing = self.content.make(&self.charter, &mut self.random, size);
                self.script.pushed.push(thing);
                if self.hosts[by].is_running() {
                    self.push(by, thing);
                    self.plan_copies(by, thing);
                }
            }
            Act::Want { by, things } => {
                for thing in things {
                    self.want(by, thing);
                }
            }
            Act::Remove { by } => self.remove_any(by),
            Act::Start(who) => self.start(who),
            Act::Crash { who, power } => self.crash(who, power),
            Act::Wake { who, slept } => self.wake_up(who, slept),
        }
    }

    fn plan_copies(&mut self, at: Index, thing: ThingIndex) {
        if self.copies > 1 {
            let life = self.hosts[at].life;
            let replicate = Happening::Replicate { at, life, thing };
            self.agenda.after(COPY_AFTER, replicate);
        }
    }

    fn act_out_step(&mut self, step: &Step) {
        let (count, now, scale) = (self.hosts.len(), self.now(), self.script.scale);
        if let Some(push) = &step.push {
            let by = push.by.among(count, &mut self.random);
            let (paths, size) = (push.paths.at(scale), push.size.at(scale).0);
            let within = push.within.at(scale).0;
            for (number, at) in spread(now, within, paths).enumerate() {
                if let Some(by) = by.get(number % by.len().max(1)).copied() {
                    self.act_at(at, Act::Push { by, size });
                }
            }
        }
        if let Some(fetch) = &step.fetch {
            let things = self.script.pushed.clone();
            for by in fetch.by.among(count, &mut self.random) {
                let nanos = self.random.below(fetch.within.0.as_nanos() as u64 + 1);
                let things = things.clone();
                let at = now + Duration::from_nanos(nanos);
                self.tally.ordered(at, by, &things);
                self.act_at(at, Act::Want { by, things });
            }
        }
        if let Some(remove) = &step.remove {
            let by = remove.by.among(count, &mut self.random);
            let within = remove.within.at(scale).0;
            for (number, at) in spread(now, within, remove.paths.at(scale)).enumerate() {
                if let Some(by) = by.get(number % by.len().max(1)).copied() {
                    self.act_at(at, Act::Remove { by });
                }
            }
        }
        if let Some(partition) = &step.partition {
            let side = partition.side.among(count, &mut self.random);
            self.put_up_walls(&side, partition.one_way);
        }
        if step.heal.is_some() {
            self.heal();
        }
        if let Some(Crash { who, power }) = &step.crash {
            for who in who.among(count, &mut self.random) {
                self.crash(who, *power);
            }
        }
        self.act_out_who(step);
        if let Some(sleep) = &step.sleep {
            for who in sleep.who.among(count, &mut self.random) {
                self.fall_asleep(who, sleep.span.map(|span| span.at(scale).0));
            }
        }
        if let Some(skew) = &step.clock {
            self.set_clocks(skew);
        }
        if let Some(revoke) = &step.revoke {
            let by = revoke.by.among(count, &mut self.random);
            for who in revoke.who.among(count, &mut self.random) {
                if let Some(by) = by.first() {
                    self.revoke(*by, who);
                }
            }
        }
        if let Some(churn) = &step.churn {
            self.plan_churn(churn);
        }
        if let Some(network) = &step.network {
            self.links.weather = weather(network);
        }
        if step.measure.is_some() {
            let traffic = self.hosts.iter().map(|host| host.traffic).collect();
            self.tally.measure_from(now, traffic);
        }
    }

    /// Steps that are about hosts and nothing else.
    fn act_out_who(&mut self, step: &Step) {
        let count = self.hosts.len();
        let mut chosen = |who: &Option<Who>| {
            let who = who.as_ref();
            who.map_or(Vec::new(), |who| who.who.among(count, &mut self.random))
        };
        let (start, image, restore) = (
            chosen(&step.start),
            chosen(&step.image),
            chosen(&step.restore),
        );
        let (fill, space) = (chosen(&step.fill), chosen(&step.space));
        start.into_iter().for_each(|who| self.start(who));
        image
            .into_iter()
            .for_each(|who| self.hosts[who].take_image());
        for who in restore {
            self.crash(who, true);
            self.hosts[who].restore_image();
            if self.is(Mutant::WritesBeforeAsking) {
                self.write_too_early(who);
            }
            self.start(who);
        }
        for (hosts, full) in [(fill, true), (space, false)] {
            for who in hosts {
                if let Some(replica) = &self.hosts[who].replica {
                    replica.log().set_full(full);
                }
                match full {
                    true => self.abandon_flights(who),
                    false => self.retry(who),
                }
            }
        }
    }

    fn put_up_walls(&mut self, side: &[Index], one_way: bool) {
        for from in side {
            for to in 0..self.hosts.len() {
                if !side.contains(&to) {
                    self.links.set_wall(*from, to, true);
                    self.links.set_wall(to, *from, !one_way);
                }
            }
        }
        self.notice_walls();
    }

    fn heal(&mut self) {
        self.links.tear_down_walls();
        let missing = self.missing_bytes();
        let traffic = self.hosts.iter().map(|host| host.traffic).collect();
        self.tally.healed(self.agenda.now(), missing, traffic);
        self.find_each_other();
    }

    /// Starts a host, with its clock as it is.
    pub(crate) fn start(&mut self, who: Index) {
        if !matches!(self.hosts[who].state, State::Absent | State::Down) {
            return;
        }
        if self.is(Mutant::StartsFromOldView) && self.hosts[who].life > 0 {
            self.hosts[who].restore_image();
        }
        if self.is(Mutant::ForgetsRemovals) {
            let store = &mut self.hosts[who].store;
            store.rows.extend(store.held.iter().copied());
        }
        let seed = self.random.bits();
        self.hosts[who].boot(&self.charter, seed);
        let life = self.hosts[who].life;
        self.note(Note::Boot, [who as u64, life, 0]);
        self.oracle_view(who);
        self.tell_replica(who, Event::Tick);
        self.look_at_everything(who);
        self.seek_all(who);
        if !self.hosts[who].manner.is_honest() {
            self.agenda
                .after(MISCHIEF_AFTER, Happening::Mischief { at: who, life });
        }
        let wants = self.hosts[who].wants.clone();
        wants
            .into_iter()
            .for_each(|thing| self.may_begin(who, thing));
    }

    pub(crate) fn crash(&mut self, who: Index, power: bool) {
        if !matches!(self.hosts[who].state, State::Running | State::Asleep) {
            return;
        }
        self.note(Note::Down, [who as u64, power.into(), 0]);
        for other in self.hosts[who].links.keys().copied().collect::<Vec<_>>() {
            self.hosts[who].links.remove(&other);
            self.mesh_lost(who, other);
        }
        self.hosts[who].halt();
        if power {
            let random = &mut self.random;
            if let Some(disk) = self.hosts[who].disk_mut() {
                disk.lose_power(random);
            }
            self.oracle.forgive(who);
        }
        self.fall_away(who, power);
    }

    fn fall_asleep(&mut self, who: Index, span: Option<Duration>) {
        if !self.hosts[who].is_running() {
            return;
        }
        self.hosts[who].state = State::Asleep;
        self.fall_away(who, true);
        if let Some(slept) = span {
            self.act_at(self.now() + slept, Act::Wake { who, slept });
        }
    }

    /// Everything a host would have done meanwhile is due at once.
    fn wake_up(&mut self, who: Index, slept: Duration) {
        if self.hosts[who].state != State::Asleep {
            return;
        }
        let now = self.now();
        let host = &mut self.hosts[who];
        host.state = State::Running;
        host.clock.sleep(slept);
        host.gossip.rest();
        host.sweeping = false;
        let life = host.life;
        let waiting = std::mem::take(&mut host.inbox);
        for (from, session, message) in waiting {
            self.arrive(now, (from, who), session, message);
        }
        self.tell_replica(who, Event::Tick);
        for thing in self.hosts[who].flights.keys().copied().collect::<Vec<_>>() {
            self.tell_fetch(who, thing, attic_p2p::fetch::Event::Tick);
        }
        self.sweep(who);
        for (other, session) in self.hosts[who].links.clone() {
            let notice = Happening::Notice {
                at: who,
                other,
                session,
            };
            self.agenda.after(NOTICE_AFTER_SLEEP, notice);
        }
        self.seek_all(who);
        if !self.hosts[who].manner.is_honest() {
            self.agenda
                .after(MISCHIEF_AFTER, Happening::Mischief { at: who, life });
        }
    }

    fn set_clocks(&mut self, skew: &Skew) {
        let count = self.hosts.len();
        let skew_millis = skew.ahead.0.as_millis() as i64 - skew.behind.0.as_millis() as i64;
        for who in skew.who.among(count, &mut self.random) {
            self.hosts[who].clock.skew = skew_millis;
            self.seek_all(who);
        }
    }

    fn plan_churn(&mut self, churn: &Churn) {
        let who = churn.who.among(self.hosts.len(), &mut self.random);
        let end = self.now() + churn.span.at(self.script.scale).0;
        if who.is_empty() {
            return;
        }
        let each = Duration::from_secs(60).div_f64(churn.per_minute * who.len() as f64);
        let mut at = self.now() + each / 2;
        while at < end {
            let who = who[self.random.below(who.len() as u64) as usize];
            let power = self.random.chance(0.5);
            self.act_at(at, Act::Crash { who, power });
            self.act_at(at + CHURN_AWAY, Act::Start(who));
            at += each;
        }
    }

    fn remove_any(&mut self, by: Index) {
        let hash = |thing: &ThingIndex| self.content.thing(*thing).hash();
        let shown = &self.hosts[by].shown;
        let pushed = self.script.pushed.iter().copied();
        let candidates = pushed.filter(|thing| shown.contains(&hash(thing)));
        let candidates: Vec<ThingIndex> = candidates.collect();
        if !candidates.is_empty() && self.hosts[by].is_running() {
            let chosen = self.random.below(candidates.len() as u64) as usize;
            self.remove(by, candidates[chosen]);
        }
    }
}

pub(crate) fn weather(network: &Network) -> Weather {
    Weather {
        latency: network.latency.0,
        jitter: network.jitter,
        loss: network.loss,
        gossip_loss: network.gossip_loss,
        twice: network.twice,
    }
}

/// `count` moments from `now` on, evenly over `within`.
fn spread(now: Duration, within: Duration, count: usize) -> impl Iterator<Item = Duration> {
    let each = within / (count.max(1) as u32);
    (0..count as u32).map(move |number| now + each * number)
}

const COPY_AFTER: Duration = Duration::from_secs(1);
const MISCHIEF_AFTER: Duration = Duration::from_millis(300);
const NOTICE_AFTER_SLEEP: Duration = Duration::from_secs(5);
/// How long a host is away that left.
const CHURN_AWAY: Duration = Duration::from_secs(30);
