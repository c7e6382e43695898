//! The store's reports as the API tells them.

use std::time::Duration;

use attic_store::{CollectReport, VerifyReport};

use crate::api::{DAMAGED_LISTED_MAX, DamagedNar, GcReply, VerifyReply};

pub(crate) fn gc_reply(report: &CollectReport, dry_run: bool, took: Duration) -> GcReply {
    GcReply {
        dry_run,
        evicted_paths: report.evicted_paths,
        dropped_nars: report.dropped_nars,
        deleted_packs: report.deleted_packs,
        rewritten_packs: report.rewritten_packs,
        leased_packs: report.leased_packs,
        freed_bytes: report.freed_bytes,
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
        millis: millis(took),
    }
}

pub(crate) fn verify_reply(report: &VerifyReport, took: Duration) -> VerifyReply {
    let damaged = report.damaged_nars.iter().take(DAMAGED_LISTED_MAX);
    let damaged = damaged.map(|nar| DamagedNar {
        nar_hash: nar.nar_hash,
        paths: nar.paths.clone(),
    });
    VerifyReply {
        packs: report.packs,
        records: report.records,
        bytes: report.bytes,
        nars: report.nars,
        damaged_records: report.damaged_records,
        spare_records: report.spare_records,
        damaged_nars: report.damaged_nars.len() as u64,
        damaged: damaged.collect(),
        healed_nars: report.healed_nars,
        millis: millis(took),
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
