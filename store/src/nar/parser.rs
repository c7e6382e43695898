//! The streaming reader of NARs.

use std::mem;

use crate::nar::listing::{Listing, ListingBuilder};
use crate::nar::{MAGIC, NAME_LEN_MAX, TARGET_LEN_MAX, is_name, is_target, padding_len};

/// Reads a NAR in pieces of any size, without any I/O of its own.
///
/// Contents of files are skipped, not kept. Memory is bounded by [`NarLimits`]: the listing, and
/// for each open directory its last name. How the bytes are split does not change the result. After
/// an error every further call returns the same error.
///
/// ```
/// use attic_store::nar::{NarLimits, NarParser, NarWriter};
///
/// let mut nar = Vec::new();
/// let mut writer = NarWriter::new(|bytes: &[u8]| nar.extend_from_slice(bytes));
/// writer.symlink(b"target")?;
/// writer.finish()?;
///
/// let mut parser = NarParser::new(NarLimits::default());
/// for piece in nar.chunks(7) {
///     parser.push(piece)?;
/// }
/// let listing = parser.finish()?;
/// let json = r#"{"version":1,"root":{"type":"symlink","target":"target"}}"#;
/// assert_eq!(listing.json(), Some(json));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NarParser {
    limits: NarLimits,
    expect: Expect,
    /// Bytes of the NAR before the string that is expected, or before the next byte of contents.
    offset: u64,
    /// First bytes of a string whose rest has not arrived.
    carry: Vec<u8>,
    /// For each open directory, where its last name begins in `names`.
    open: Vec<usize>,
    names: Vec<u8>,
    entries: u64,
    listing: ListingBuilder,
    boundaries: Vec<u64>,
    failed: Option<NarError>,
}

/// Bounds on what a NAR may ask of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarLimits {
    /// Most files, directories and links; more are an error.
    pub entries_max: u64,
    /// Most directories inside one another; more are an error.
    pub depth_max: usize,
    /// Longest listing, in bytes of JSON; beyond it the NAR is read on and the listing dropped.
    pub listing_len_max: usize,
    /// Shortest contents whose beginning [`NarParser::take_boundaries`] reports, in bytes.
    pub boundary_len_min: u64,
}

impl Default for NarLimits {
    /// 16 Mi entries, 2048 levels (a path of 4096 bytes has no more), 8 MiB, no boundaries.
    fn default() -> Self {
        Self {
            entries_max: 16 << 20,
            depth_max: 2048,
            listing_len_max: 8 << 20,
            boundary_len_min: u64::MAX,
        }
    }
}

impl NarParser {
    /// A parser at the beginning of a NAR.
    pub fn new(limits: NarLimits) -> Self {
        Self {
            limits,
            expect: Expect::Magic,
            offset: 0,
            carry: Vec::new(),
            open: Vec::new(),
            names: Vec::new(),
            entries: 0,
            listing: ListingBuilder::new(limits.listing_len_max),
            boundaries: Vec::new(),
            failed: None,
        }
    }

    /// Takes the next bytes of the NAR.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance(bytes)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Offsets in the NAR, ascending, at which contents of at least
    /// [`NarLimits::boundary_len_min`] bytes begin, found since the last call. None is beyond the
    /// bytes pushed. Call it after each push: they are kept until then.
    pub fn take_boundaries(&mut self) -> Vec<u64> {
        mem::take(&mut self.boundaries)
    }

    /// Ends the NAR.
    ///
    /// **Errors** [`NarError::Truncated`] when more bytes should have come, or the error that an
    /// earlier push returned.
    pub fn finish(self) -> Result<Listing, NarError> {
        match (self.failed, self.expect) {
            (Some(error), _) => Err(error),
            (None, Expect::End) => Ok(self.listing.finish()),
            (None, _) => Err(NarError::Truncated {
                offset: self.offset,
            }),
        }
    }

    fn advance(&mut self, mut input: &[u8]) -> Result<(), NarError> {
        while !input.is_empty() {
            match self.expect {
                Expect::Contents { left } => self.skip_contents(left, &mut input),
                Expect::Padding { left } => self.skip_padding(left, &mut input)?,
                Expect::End => return Err(self.malformed(NarFault::Trailing)),
                _ => self.next_string(&mut input)?,
            }
        }
        Ok(())
    }

    fn skip_contents(&mut self, left: u64, input: &mut &[u8]) {
        let skipped = left.min(input.len() as u64);
        *input = &input[skipped as usize..];
        self.offset += skipped;
        if skipped < left {
            self.expect = Expect::Contents {
                left: left - skipped,
            };
        } else {
            self.expect_padding(padding_len(self.offset));
        }
    }

    fn skip_padding(&mut self, left: u64, input: &mut &[u8]) -> Result<(), NarError> {
        let (byte, rest) = input
            .split_first()
            .expect("the caller checked that input is left");
        if *byte != 0 {
            return Err(self.malformed(NarFault::Padding));
        }
        *input = rest;
        self.offset += 1;
        self.expect_padding(left - 1);
        Ok(())
    }

    /// All strings before contents are padded, so offsets and lengths agree modulo 8.
    fn expect_padding(&mut self, left: u64) {
        self.expect = match left {
            0 => Expect::NodeClose,
            left => Expect::Padding { left },
        };
    }

    /// Reads one string, or keeps what there is of it for the next call.
    fn next_string(&mut self, input: &mut &[u8]) -> Result<(), NarError> {
        if self.carry.is_empty()
            && let Some(whole) = self.string_len(input)?
            && let Some((string, rest)) = input.split_at_checked(whole)
        {
            *input = rest;
            return self.on_string(string);
        }
        let mut carry = mem::take(&mut self.carry);
        let wanted = self.string_len(&carry)?.unwrap_or(LEN_LEN);
        let (piece, rest) = input.split_at((wanted - carry.len()).min(input.len()));
        carry.extend_from_slice(piece);
        *input = rest;
        if self.string_len(&carry)? == Some(carry.len()) {
            self.on_string(&carry)?;
            carry.clear();
        }
        self.carry = carry;
        Ok(())
    }

    /// Bytes of the string that `bytes` begin with, its length and padding included, once the
    /// length is known.
    fn string_len(&self, bytes: &[u8]) -> Result<Option<usize>, NarError> {
        let Some(len) = bytes.first_chunk::<LEN_LEN>() else {
            return Ok(None);
        };
        if let Expect::ContentsLen { .. } = self.expect {
            return Ok(Some(LEN_LEN));
        }
        let len = u64::from_le_bytes(*len);
        if len > self.expect.string_len_max() {
            return Err(self.malformed(self.expect.fault()));
        }
        Ok(Some(LEN_LEN + (len + padding_len(len)) as usize))
    }

    /// Takes one whole string, its length and padding included.
    fn on_string(&mut self, whole: &[u8]) -> Result<(), NarError> {
        let (len, padded) = whole
            .split_first_chunk::<LEN_LEN>()
            .expect("a string has a length");
        let len = u64::from_le_bytes(*len);
        if let Expect::ContentsLen { executable } = self.expect {
            self.on_contents_len(len, executable)?;
        } else {
            let (string, padding) = padded.split_at(len as usize);
            if padding.iter().any(|byte| *byte != 0) {
                return Err(self.malformed(NarFault::Padding));
            }
            self.expect = self.on_value(string)?;
        }
        self.offset += whole.len() as u64;
        Ok(())
    }

    fn on_contents_len(&mut self, len: u64, executable: bool) -> Result<(), NarError> {
        let start = self.offset + LEN_LEN as u64;
        if start
            .checked_add(len)
            .and_then(|end| end.checked_add(8))
            .is_none()
        {
            return Err(self.malformed(NarFault::ContentsLen));
        }
        self.listing.regular(len, executable, start);
        if len >= self.limits.boundary_len_min {
            self.boundaries.push(start);
        }
        self.expect = match len {
            0 => Expect::NodeClose,
            left => Expect::Contents { left },
        };
        Ok(())
    }

    /// What follows `string`, when it is what is expected.
    fn on_value(&mut self, string: &[u8]) -> Result<Expect, NarError> {
        match (self.expect, string) {
            (Expect::Name, name) => self.on_name(name),
            (Expect::Target, target) if is_target(target) => {
                self.listing.symlink(target);
                Ok(Expect::NodeClose)
            }
            (Expect::Magic, b"nix-archive-1") => Ok(Expect::NodeOpen),
            (Expect::NodeOpen, b"(") => self.on_node(),
            (Expect::TypeTag, b"type") => Ok(Expect::Type),
            (Expect::Type, b"regular") => Ok(Expect::ExecutableOrContents),
            (Expect::Type, b"directory") => self.on_directory(),
            (Expect::Type, b"symlink") => Ok(Expect::TargetTag),
            (Expect::ExecutableOrContents, b"executable") => Ok(Expect::ExecutableValue),
            (Expect::ExecutableOrContents, b"contents") => {
                Ok(Expect::ContentsLen { executable: false })
            }
            (Expect::ExecutableValue, b"") => Ok(Expect::ContentsTag),
            (Expect::ContentsTag, b"contents") => Ok(Expect::ContentsLen { executable: true }),
            (Expect::TargetTag, b"target") => Ok(Expect::Target),
            (Expect::EntryOrClose, b"entry") => Ok(Expect::EntryOpen),
            (Expect::EntryOrClose, b")") => Ok(self.on_directory_end()),
            (Expect::EntryOpen, b"(") => Ok(Expect::NameTag),
            (Expect::NameTag, b"name") => Ok(Expect::Name),
            (Expect::NodeTag, b"node") => Ok(Expect::NodeOpen),
            (Expect::NodeClose, b")") => Ok(self.after_node()),
            (Expect::EntryClose, b")") => Ok(Expect::EntryOrClose),
            (expect, _) => Err(self.malformed(expect.fault())),
        }
    }

    fn on_node(&mut self) -> Result<Expect, NarError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(NarError::TooManyEntries {
                max: self.limits.entries_max,
            });
        }
        Ok(Expect::TypeTag)
    }

    fn on_directory(&mut self) -> Result<Expect, NarError> {
        if self.open.len() == self.limits.depth_max {
            return Err(NarError::TooDeep {
                max: self.limits.depth_max,
            });
        }
        self.open.push(self.names.len());
        self.listing.directory_begin();
        Ok(Expect::EntryOrClose)
    }

    fn on_name(&mut self, name: &[u8]) -> Result<Expect, NarError> {
        if !is_name(name) {
            return Err(self.malformed(NarFault::Name));
        }
        let start = *self
            .open
            .last()
            .expect("names are expected in directories only");
        // No name is empty, so the first one of a directory is greater than what is there.
        if name <= &self.names[start..] {
            return Err(self.malformed(NarFault::Order));
        }
        self.listing.entry(name, self.names.len() == start);
        self.names.truncate(start);
        self.names.extend_from_slice(name);
        Ok(Expect::NodeTag)
    }

    fn on_directory_end(&mut self) -> Expect {
        let start = self.open.pop().expect("a directory is open");
        self.names.truncate(start);
        self.listing.directory_end();
        self.after_node()
    }

    fn after_node(&self) -> Expect {
        if self.open.is_empty() {
            Expect::End
        } else {
            Expect::EntryClose
        }
    }

    fn malformed(&self, fault: NarFault) -> NarError {
        NarError::Malformed {
            offset: self.offset,
            fault,
        }
    }
}

/// Why bytes are not a NAR, or not one we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// The bytes are not a NAR.
    #[error("malformed NAR at byte {offset}: {fault}")]
    Malformed {
        /// Where the string begins that is wrong, or the byte that is.
        offset: u64,
        /// What is wrong there.
        fault: NarFault,
    },
    /// The bytes end before the NAR does.
    #[error("truncated NAR: nothing at byte {offset}")]
    Truncated {
        /// Where the string begins that is missing or cut, or the byte that is.
        offset: u64,
    },
    /// More files, directories and links than [`NarLimits::entries_max`].
    #[error("NAR has more than {max} entries")]
    TooManyEntries {
        /// The limit.
        max: u64,
    },
    /// More directories inside one another than [`NarLimits::depth_max`].
    #[error("NAR has directories more than {max} deep")]
    TooDeep {
        /// The limit.
        max: usize,
    },
}

/// What is wrong at one place of a NAR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarFault {
    /// It does not begin as NARs do.
    #[error("not a NAR")]
    Magic,
    /// Another word than the grammar wants here.
    #[error("expected {expected}")]
    Tag {
        /// What would have been right.
        expected: &'static str,
    },
    /// A node is neither a regular file nor a directory nor a symbolic link.
    #[error("unknown file type")]
    Type,
    /// The `executable` mark has a value.
    #[error("executable mark is not empty")]
    ExecutableValue,
    /// The length of a file overflows the NAR's.
    #[error("file too long")]
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
    /// A byte of padding is not zero.
    #[error("padding not zero")]
    Padding,
    /// Bytes follow the end.
    #[error("bytes after the end")]
    Trailing,
}

/// What the grammar wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    NodeOpen,
    TypeTag,
    Type,
    ExecutableOrContents,
    ExecutableValue,
    ContentsTag,
    ContentsLen { executable: bool },
    Contents { left: u64 },
    Padding { left: u64 },
    TargetTag,
    Target,
    EntryOrClose,
    EntryOpen,
    NameTag,
    Name,
    NodeTag,
    NodeClose,
    EntryClose,
    End,
}

impl Expect {
    /// Longest string that can be right here.
    fn string_len_max(self) -> u64 {
        match self {
            Self::Name => NAME_LEN_MAX as u64,
            Self::Target => TARGET_LEN_MAX as u64,
            _ => MAGIC.len() as u64,
        }
    }

    /// What is wrong when something else stands here.
    fn fault(self) -> NarFault {
        let expected = match self {
            Self::Magic => return NarFault::Magic,
            Self::Type => return NarFault::Type,
            Self::ExecutableValue => return NarFault::ExecutableValue,
            Self::Name => return NarFault::Name,
            Self::Target => return NarFault::Target,
            Self::ContentsLen { .. } | Self::Contents { .. } => return NarFault::ContentsLen,
            Self::Padding { .. } => return NarFault::Padding,
            Self::End => return NarFault::Trailing,
            Self::NodeOpen | Self::EntryOpen => "(",
            Self::NodeClose | Self::EntryClose => ")",
            Self::TypeTag => "type",
            Self::ExecutableOrContents => "executable or contents",
            Self::ContentsTag => "contents",
            Self::TargetTag => "target",
            Self::EntryOrClose => "entry or )",
            Self::NameTag => "name",
            Self::NodeTag => "node",
        };
        NarFault::Tag { expected }
    }
}

/// Bytes of a string's length.
const LEN_LEN: usize = 8;
