use super::file::HEAD_LEN;
use super::*;

fn node(n: u8) -> NodeId {
    attic_p2p::identity::Identity::from_seed([n; 32]).node_id()
}

fn open(dir: &Path) -> LogFiles {
    LogFiles::open(dir, node(1)).unwrap()
}

fn put(log: &mut LogFiles, who: u8, seq: u64, text: &str) {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    log.append(node(who), seq, bytes).unwrap();
}

fn get(log: &LogFiles, who: u8, seq: u64) -> Option<String> {
    let bytes = log.read(node(who), seq).unwrap()?;
    Some(String::from_utf8(bytes.into()).unwrap())
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
    let whole = HEAD_LEN + "second segment".len();
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

/// Wherever a byte decays: what is whole stays, what is not is known to be missing, and nothing
/// can be written in its place but by mending it.
#[test]
fn bit_rot_costs_one_segment_and_leaves_its_number() {
    let texts = ["first", "the second segment", "third"];
    let len = texts.iter().map(|text| HEAD_LEN + text.len()).sum();
    for at in 0..len {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        (1..)
            .zip(texts)
            .for_each(|(seq, text)| put(&mut log, 1, seq, text));
        let path = log.path(&node(1));
        let mut bytes = fs::read(&path).unwrap();
        let sound = bytes.clone();
        bytes[at] ^= 0x41;
        fs::write(&path, &bytes).unwrap();

        let mut log = open(dir.path());
        assert_eq!(log.range(node(1)), Some((1, 3)), "byte {at}");
        let lost: Vec<u64> = (1..=3).filter(|seq| get(&log, 1, *seq).is_none()).collect();
        let [lost] = lost[..] else {
            panic!("byte {at}: {lost:?} lost");
        };
        for seq in 1..=3 {
            let error = log.append(node(1), seq, Bytes::new()).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
        }
        put(&mut log, 1, 4, "fourth");
        let text = Bytes::from_static(texts[lost as usize - 1].as_bytes());
        log.mend(node(1), lost, text).unwrap();
        for log in [log, open(dir.path())] {
            (1..)
                .zip(texts)
                .for_each(|(seq, text)| assert_eq!(get(&log, 1, seq).unwrap(), text));
            assert_eq!(get(&log, 1, 4).unwrap(), "fourth");
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
    for seq in [5, 6, 9] {
        (0..60).for_each(|at| bytes[(seq - 1) * 60 + at] ^= 0xff);
    }
    fs::write(&path, &bytes).unwrap();
    let mut log = open(dir.path());
    assert_eq!(log.range(node(1)), Some((1, 9)));
    log.forget_before(node(1), 5).unwrap();
    for seq in [9, 5, 6] {
        let mut again = open(dir.path());
        assert_eq!(again.range(node(1)), Some((5, 9)), "before {seq} is mended");
        assert_eq!(get(&again, 1, seq), None);
        let text = Bytes::from(seq.to_string().repeat(40));
        again.mend(node(1), seq, text).unwrap();
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
