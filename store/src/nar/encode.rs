//! The writer of NARs.

use crate::nar::{MAGIC, is_name, is_target, padding_len};

/// Writes a NAR: whoever walks a tree calls its methods, the bytes go to `sink` in order.
///
/// A node is one call of [`symlink`](Self::symlink), or of [`regular`](Self::regular) followed by
/// its [`contents`](Self::contents), or [`directory_begin`](Self::directory_begin), an
/// [`entry`](Self::entry) before each node in it, and [`directory_end`](Self::directory_end). Calls
/// in another order are errors, so what is written is a NAR or unfinished. An error leaves
/// the writer as it was.
#[derive(Debug)]
pub struct NarWriter<S> {
    sink: S,
    expect: Expect,
    /// For each open directory, its last name; empty before the first.
    open: Vec<Vec<u8>>,
    /// Strings of one call on their way to the sink.
    scratch: Vec<u8>,
    len: u64,
}

impl<S: FnMut(&[u8])> NarWriter<S> {
    /// A writer that has written nothing but the beginning all NARs share.
    pub fn new(sink: S) -> Self {
        let mut writer = Self {
            sink,
            expect: Expect::Node,
            open: Vec::new(),
            scratch: Vec::new(),
            len: 0,
        };
        writer.write([MAGIC.as_bytes()]);
        writer
    }

    /// Begins a regular file of `len` bytes; exactly so many must follow by
    /// [`contents`](Self::contents).
    pub fn regular(&mut self, executable: bool, len: u64) -> Result<(), NarWriteError> {
        self.wants(Expect::Node)?;
        self.string(b"(");
        self.string(b"type");
        self.string(b"regular");
        if executable {
            self.string(b"executable");
            self.string(b"");
        }
        self.string(b"contents");
        self.scratch.extend_from_slice(&len.to_le_bytes());
        self.flush();
        self.expect = Expect::Contents { left: len };
        if len == 0 {
            self.end_regular();
        }
        Ok(())
    }

    /// Writes the next bytes of the open file; the last ones end it.
    pub fn contents(&mut self, bytes: &[u8]) -> Result<(), NarWriteError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Expect::Contents { left } = self.expect else {
            return Err(NarWriteError::Sequence);
        };
        let left = left
            .checked_sub(bytes.len() as u64)
            .ok_or(NarWriteError::ContentsLen)?;
        (self.sink)(bytes);
        self.len += bytes.len() as u64;
        self.expect = Expect::Contents { left };
        if left == 0 {
            self.end_regular();
        }
        Ok(())
    }

    /// Writes a symbolic link.
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), NarWriteError> {
        self.wants(Expect::Node)?;
        if !is_target(target) {
            return Err(NarWriteError::Target);
        }
        self.write([b"(", b"type", b"symlink", b"target", target, b")"]);
        self.end_node();
        Ok(())
    }

    /// Begins a directory.
    pub fn directory_begin(&mut self) -> Result<(), NarWriteError> {
        self.wants(Expect::Node)?;
        self.write([b"(" as &[u8], b"type", b"directory"]);
        self.open.push(Vec::new());
        self.expect = Expect::Entry;
        Ok(())
    }

    /// Begins the next entry of the open directory, whose node must follow. Names must ascend as
    /// bytes.
    pub fn entry(&mut self, name: &[u8]) -> Result<(), NarWriteError> {
        self.wants(Expect::Entry)?;
        if !is_name(name) {
            return Err(NarWriteError::Name);
        }
        let last = self
            .open
            .last_mut()
            .expect("entries are wanted in directories only");
        if name <= last.as_slice() {
            return Err(NarWriteError::Order);
        }
        last.clear();
        last.extend_from_slice(name);
        self.write([b"entry", b"(", b"name", name, b"node"]);
        self.expect = Expect::Node;
        Ok(())
    }

    /// Ends the open directory.
    pub fn directory_end(&mut self) -> Result<(), NarWriteError> {
        self.wants(Expect::Entry)?;
        self.open.pop();
        self.write([b")"]);
        self.end_node();
        Ok(())
    }

    /// Ends the NAR and gives its length in bytes.
    ///
    /// **Errors** [`NarWriteError::Sequence`] when the tree is not complete.
    pub fn finish(self) -> Result<u64, NarWriteError> {
        self.wants(Expect::End)?;
        Ok(self.len)
    }

    fn end_regular(&mut self) {
        let padding = padding_len(self.len) as usize;
        self.scratch.resize(padding, 0);
        self.write([b")"]);
        self.end_node();
    }

    fn end_node(&mut self) {
        if self.open.is_empty() {
            self.expect = Expect::End;
        } else {
            self.write([b")"]);
            self.expect = Expect::Entry;
        }
    }

    fn wants(&self, expect: Expect) -> Result<(), NarWriteError> {
        if self.expect == expect {
            Ok(())
        } else {
            Err(NarWriteError::Sequence)
        }
    }

    /// Sends what is in the scratch buffer and then `strings`.
    fn write<const N: usize>(&mut self, strings: [&[u8]; N]) {
        for string in strings {
            self.string(string);
        }
        self.flush();
    }

    fn string(&mut self, string: &[u8]) {
        let len = string.len() as u64;
        self.scratch.extend_from_slice(&len.to_le_bytes());
        self.scratch.extend_from_slice(string);
        let padded = self.scratch.len() + padding_len(len) as usize;
        self.scratch.resize(padded, 0);
    }

    fn flush(&mut self) {
        (self.sink)(&self.scratch);
        self.len += self.scratch.len() as u64;
        self.scratch.clear();
    }
}

/// Why a call would not continue a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NarWriteError {
    /// The call does not follow the one before it.
    #[error("call out of sequence")]
    Sequence,
    /// More contents than the file was begun with.
    #[error("file is longer than announced")]
    ContentsLen,
    /// A name is empty, `.`, `..`, too long, or has a `/` or NUL.
    #[error("invalid file name")]
    Name,
    /// A name is not greater than the one before it.
    #[error("directory not sorted")]
    Order,
    /// The target of a link is empty, too long, or has a NUL.
    #[error("invalid link target")]
    Target,
}

/// Which calls may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// A node.
    Node,
    /// An entry, or the end of the directory.
    Entry,
    /// This many bytes of contents, more than 0.
    Contents { left: u64 },
    /// The end.
    End,
}
