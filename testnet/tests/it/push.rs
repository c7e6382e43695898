//! `attic-node push`: what it sends, what it survives, what it says.

mod economy;
mod faults;
mod full;
mod logs;
mod policy;
mod possession;
mod words;

use testnet::nix::NixClient;
use testnet::seed::Seed;

/// Puts `files` files of `file_len` random bytes each into a directory of the machine's store.
/// With `changed`, one of them differs from what it is without.
///
/// The same each time, so that a store holds them once however often tests run.
fn directory(name: &str, files: u64, file_len: usize, changed: bool) -> String {
    let dir = tempfile::TempDir::new().expect("make a directory");
    let path = dir.path().join(name);
    std::fs::create_dir(&path).expect("make a directory");
    for number in 0..files {
        let other = changed && number == files / 2;
        let seed = number + if other { 1_000_000 } else { 0 };
        let contents = Seed::new(seed).bytes(file_len);
        std::fs::write(path.join(format!("file-{number}")), contents).expect("write a file");
    }
    NixClient::host().add(&[path]).remove(0)
}
