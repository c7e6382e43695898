use attic_p2p::identity::Identity;
use attic_p2p::ids::ClusterId;
use attic_p2p::record::Record;
use attic_p2p::segment::{Place, Segment, SegmentId};

use super::file::{HEAD_LEN, check, entry_bytes};
use super::*;

fn node(n: u8) -> NodeId {
    Identity::from_seed([n; 32]).node_id()
}

/// A segment that says this.
fn segment(who: u8, seq: u64, text: impl AsRef<[u8]>) -> Bytes {
    let cluster = ClusterId::from_bytes([1; 16]);
    let place = Place {
        cluster,
        seq,
        prev: SegmentId::before_first(&cluster),
        hlc: 0,
    };
    let body = text.as_ref().into();
    let record = Record::Unknown { kind: 200, body };
    let identity = Identity::from_seed([who; 32]);
    let segment = Segment::append(&identity, place, &record.encode().unwrap());
    segment.unwrap().bytes().clone()
}

fn open(dir: &Path) -> LogFiles {
    LogFiles::open(dir, node(1)).unwrap()
}

fn put(log: &mut LogFiles, who: u8, seq: u64, text: &str) {
    log.append(node(who), seq, segment(who, seq, text)).unwrap();
}

fn get(log: &LogFiles, who: u8, seq: u64) -> Option<String> {
    let segment = Segment::decode(log.read(node(who), seq).unwrap()?).unwrap();
    let entry = segment.entries().next().unwrap();
    let Record::Unknown { body, .. } = entry.record.read() else {
        panic!("{:?}", entry.record.read());
    };
    Some(String::from_utf8(body.to_vec()).unwrap())
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    (1..=3).for_each(|seq| put(&mut log, 1, seq, &format!("one {seq}")));
    put(&mut log, 2, 7, "two");
    let log = open(dir.path());
    assert_eq!(log.range(node(1)), Some((1, 3)));
    assert_eq!(log.range(node(2)), Some((7, 7)));
    assert_eq!(log.range(node(3)), None);
    assert_eq!(get(&log, 1, 2).unwrap(), "one 2");
    assert_eq!(get(&log, 2, 1), None);
    assert_eq!(log.nodes().len(), 2);
    assert_eq!(log.count(), 4);
}

#[test]
fn numbers_ascend() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    put(&mut log, 1, 2, "x");
    for seq in [2, 1, 0] {
        let error = log.append(node(1), seq, Bytes::new()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(log.range(node(1)), Some((2, 2)));
}

#[test]
fn a_torn_end_is_cut_off_and_can_be_written_again() {
    let whole = HEAD_LEN + segment(1, 2, "second segment").len();
    for left in 0..whole {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        put(&mut log, 1, 1, "first segment");
        put(&mut log, 1, 2, "second segment");
        let path = log.path(&node(1));
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - whole + left]).unwrap();
        let mut log = open(dir.path());
        assert_eq!(log.range(node(1)), Some((1, 1)), "{left} bytes left");
        put(&mut log, 1, 2, "again");
        assert_eq!(get(&open(dir.path()), 1, 2).unwrap(), "again");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    put(&mut log, 1, 1, "first segment");
    let path = log.path(&node(1));
    let blank = [fs::read(&path).unwrap(), vec![0; 300]].concat();
    fs::write(&path, blank).unwrap();
    assert_eq!(open(dir.path()).range(node(1)), Some((1, 1)));
}

/// Power fails after the length of the file was written down and before all of its pages were.
#[test]
fn an_end_of_which_a_page_was_never_written_is_cut_off() {
    for zeros in [1, 100, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        put(&mut log, 1, 1, "first");
        let before = log.len_bytes();
        let around = 2 * HEAD_LEN + segment(1, 2, "").len() + before as usize;
        put(&mut log, 1, 2, &"x".repeat(8192 + zeros - around));
        let path = log.path(&node(1));
        let mut bytes = fs::read(&path).unwrap();
        let page = (bytes.len() - 1) / 4096 * 4096;
        assert!((before as usize + HEAD_LEN..bytes.len()).contains(&page));
        bytes[page..].fill(0);
        fs::write(&path, &bytes).unwrap();
        let mut log = open(dir.path());
        assert_eq!(log.range(node(1)), Some((1, 1)), "{zeros} bytes");
        put(&mut log, 1, 2, "again");
        // Zeros inside are decay, not the end of what was written.
        let mut bytes = fs::read(&path).unwrap();
        bytes[before as usize + HEAD_LEN..][..50].fill(0);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(open(dir.path()).range(node(1)), Some((1, 2)));
    }
}

/// A segment may have anything in it, entries of a log too; when its own head decays they are no more
/// believed than before.
#[test]
fn what_an_author_put_into_a_segment_is_no_entry() {
    for inner in [
        Bytes::from_static(b"nobody signed this"),
        segment(3, 1, "somebody else signed this"),
        segment(2, 9, "it has another number"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        let text = entry_bytes(1, &inner, check(1, &inner));
        log.append(node(2), 1, segment(2, 1, &text)).unwrap();
        put(&mut log, 2, 2, "second");
        let path = log.path(&node(2));
        let mut bytes = fs::read(&path).unwrap();
        // Its length, and the check of what it says.
        bytes[3] ^= 1;
        bytes[13] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let log = open(dir.path());
        assert_eq!(log.range(node(2)), Some((1, 2)));
        assert_eq!(log.read(node(2), 1).unwrap(), None);
        assert_eq!(get(&log, 2, 2).unwrap(), "second");
    }
}

/// Wherever a byte decays: what is whole stays, what is not is known to be missing, and nothing
/// can be written in its place but by mending it.
#[test]
fn bit_rot_costs_one_segment_at_most_and_leaves_its_number() {
    let texts = ["first", "the second segment", "third"];
    let texts_len: usize = texts.iter().map(|text| text.len()).sum();
    let len = texts_len + 3 * (HEAD_LEN + segment(2, 1, "").len());
    for at in 0..len {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        (1..)
            .zip(texts)
            .for_each(|(seq, text)| put(&mut log, 2, seq, text));
        let path = log.path(&node(2));
        let mut bytes = fs::read(&path).unwrap();
        let sound = bytes.clone();
        bytes[at] ^= 0x41;
        fs::write(&path, &bytes).unwrap();

        let mut log = open(dir.path());
        assert_eq!(log.range(node(2)), Some((1, 3)), "byte {at}");
        let lost: Vec<u64> = (1..=3).filter(|seq| get(&log, 2, *seq).is_none()).collect();
        assert!(lost.len() <= 1, "byte {at}: {lost:?} lost");
        for seq in 1..=3 {
            let error = log.append(node(2), seq, Bytes::new()).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
        }
        put(&mut log, 2, 4, "fourth");
        for lost in lost {
            let sound_one = segment(2, lost, texts[lost as usize - 1]);
            log.mend(node(2), lost, sound_one).unwrap();
        }
        for log in [log, open(dir.path())] {
            (1..)
                .zip(texts)
                .for_each(|(seq, text)| assert_eq!(get(&log, 2, seq).unwrap(), text));
            assert_eq!(get(&log, 2, 4).unwrap(), "fourth");
        }
        assert!(fs::read(&path).unwrap().starts_with(&sound), "byte {at}");
    }
}

#[test]
fn what_cannot_be_read_stays_known_when_the_file_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    (1..=9).for_each(|seq| put(&mut log, 1, seq, &seq.to_string().repeat(40)));
    let path = log.path(&node(1));
    let mut bytes = fs::read(&path).unwrap();
    // Heads and bodies of 5, 6 and 9.
    let len = bytes.len() / 9;
    for seq in [5, 6, 9] {
        (0..len).for_each(|at| bytes[(seq - 1) * len + at] ^= 0xff);
    }
    fs::write(&path, &bytes).unwrap();
    let mut log = open(dir.path());
    assert_eq!(log.range(node(1)), Some((1, 9)));
    log.forget_before(node(1), 5).unwrap();
    for seq in [9, 5, 6] {
        let mut again = open(dir.path());
        assert_eq!(again.range(node(1)), Some((5, 9)), "before {seq} is mended");
        assert_eq!(get(&again, 1, seq), None);
        let text = seq.to_string().repeat(40);
        again.mend(node(1), seq, segment(1, seq, text)).unwrap();
    }
    let log = open(dir.path());
    (5..=9).for_each(|seq| assert!(get(&log, 1, seq).is_some(), "{seq}"));
}

#[test]
fn forgetting_the_beginning_keeps_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    (1..=9).for_each(|seq| put(&mut log, 1, seq, &seq.to_string().repeat(100)));
    let before = log.len_bytes();
    log.forget_before(node(1), 3).unwrap();
    assert_eq!(log.len_bytes(), before, "too little to be worth it");
    log.forget_before(node(1), 7).unwrap();
    assert!(log.len_bytes() < before / 2);
    put(&mut log, 1, 10, "ten");
    for log in [log, open(dir.path())] {
        assert_eq!(log.range(node(1)), Some((7, 10)));
        assert_eq!(get(&log, 1, 6), None);
        assert_eq!(get(&log, 1, 10).unwrap(), "ten");
    }
}

#[test]
fn forgetting_the_end_frees_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    (1..=5).for_each(|seq| put(&mut log, 2, seq, "x"));
    log.forget_after(node(2), 2).unwrap();
    log.forget_after(node(2), u64::MAX).unwrap();
    assert_eq!(log.range(node(2)), Some((1, 2)));
    put(&mut log, 2, 3, "three");
    assert_eq!(get(&open(dir.path()), 2, 3).unwrap(), "three");
}

#[test]
fn decay_after_opening_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    put(&mut log, 1, 1, "segment");
    let path = log.path(&node(1));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(get(&log, 1, 1), None);
}
