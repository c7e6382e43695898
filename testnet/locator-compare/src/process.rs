//! Memory of this process and size of a directory, as Linux reports them.

use std::error::Error;
use std::fs::{File, read_dir, read_to_string};
use std::io::{copy, sink};
use std::path::Path;

/// Resident bytes now (`VmRSS`).
pub fn rss() -> Result<u64, Box<dyn Error>> {
    status("VmRSS:")
}

/// Most resident bytes so far (`VmHWM`).
pub fn peak_rss() -> Result<u64, Box<dyn Error>> {
    status("VmHWM:")
}

fn status(field: &str) -> Result<u64, Box<dyn Error>> {
    let text = read_to_string("/proc/self/status")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .ok_or("no such field")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}

/// CPU seconds of all threads so far, in steps of 10 ms.
pub fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let text = read_to_string("/proc/self/stat")?;
    // The second field may hold spaces; it ends at the last parenthesis.
    let fields = text
        .rsplit(')')
        .next()
        .ok_or("no fields")?
        .split_whitespace();
    let ticks: Vec<u64> = fields
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

/// Bytes of all files below `dir`, as allocated by the file system.
pub fn dir_len(dir: &Path) -> Result<u64, Box<dyn Error>> {
    use std::os::unix::fs::MetadataExt;
    let mut len = 0;
    for entry in read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        len += if meta.is_dir() {
            dir_len(&entry.path())?
        } else {
            meta.blocks() * 512
        };
    }
    Ok(len)
}

/// Brings every file below `dir` into the page cache.
pub fn warm(dir: &Path) -> Result<(), Box<dyn Error>> {
    for entry in read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            warm(&path)?;
        } else {
            copy(&mut File::open(&path)?, &mut sink())?;
        }
    }
    Ok(())
}
