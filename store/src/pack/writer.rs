//! The one writer of a pack.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::StoreError;
use crate::pack::scan::read_salt;
use crate::pack::{Contents, FooterEntry, HEAD_LEN, PackFile, footer, head, pack_path};
use crate::pack_id::PackId;
use crate::record::{PackSalt, RecordHeader};

/// Appends records to a new pack.
///
/// A record that could not be written whole (disk full) is cut off again, so the pack stays a run
/// of whole records and the writer stays usable.
pub(crate) struct PackWriter {
    file: Arc<PackFile>,
    len: u64,
    entries: Vec<FooterEntry>,
}

impl PackWriter {
    /// Creates the pack `id` below `root` and makes its name durable.
    pub(crate) fn create(
        root: &Path,
        id: PackId,
        salt: PackSalt,
    ) -> Result<PackWriter, StoreError> {
        let path = pack_path(root, id);
        let folder = path
            .parent()
            .expect("a pack lies in a folder of its own prefix");
        let create = || -> io::Result<File> {
            fs::create_dir_all(folder)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            file.write_all_at(&head(id, salt), 0)?;
            File::open(folder)?.sync_all()?;
            File::open(root)?.sync_all()?;
            Ok(file)
        };
        let file = create().map_err(|error| StoreError::io("create pack", &path, error))?;
        let file = Arc::new(PackFile::new(id, path, file, salt));
        file.written.store(HEAD_LEN, Ordering::Release);
        Ok(PackWriter {
            file,
            len: HEAD_LEN,
            entries: Vec::new(),
        })
    }

    /// Takes up a pack whose writer died, to seal it.
    pub(crate) fn resume(
        root: &Path,
        id: PackId,
        contents: Contents,
    ) -> Result<PackWriter, StoreError> {
        let path = pack_path(root, id);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| StoreError::io("open pack", &path, error))?;
        let salt = read_salt(&file).map_err(|error| StoreError::io("read pack", &path, error))?;
        let file = Arc::new(PackFile::new(id, path, file, salt));
        file.written.store(contents.len, Ordering::Release);
        Ok(PackWriter {
            file,
            len: contents.len,
            entries: contents.entries,
        })
    }

    /// The pack, for reading and syncing.
    pub(crate) fn file(&self) -> &Arc<PackFile> {
        &self.file
    }

    /// The records written so far.
    pub(crate) fn entries(&self) -> &[FooterEntry] {
        &self.entries
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a record. It is readable at once, and durable after [`PackFile::sync`].
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] or [`StoreError::Io`]; the pack is then as it was.
    pub(crate) fn append(
        &mut self,
        header: &RecordHeader,
        body: &[u8],
    ) -> Result<FooterEntry, StoreError> {
        let offset = u32::try_from(self.len).map_err(|_| StoreError::NoSpace {
            what: format!("pack {} is at its largest", self.file.id),
            cap: None,
            source: None,
        })?;
        self.write(&[&header.encode(&self.file.salt), body])?;
        let entry = FooterEntry::new(header, offset);
        self.entries.push(entry);
        Ok(entry)
    }

    /// Writes the footer and makes the whole pack durable.
    ///
    /// # Errors
    /// As [`PackWriter::append`]; the pack is then unsealed, but whole, and may be sealed again.
    pub(crate) fn seal(&mut self) -> Result<(), StoreError> {
        let end = footer(&self.entries, self.len, &self.file.salt);
        let unsealed_len = self.len;
        self.write(&[&end])?;
        self.file.sync().inspect_err(|_| {
            // Records after a footer would be lost: what comes next overwrites it.
            self.len = unsealed_len;
            let _ = self.file.file.set_len(unsealed_len);
        })
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<(), StoreError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut parts: Vec<_> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
        let mut at = Cursor {
            file: &self.file.file,
            offset: self.len,
        };
        if let Err(error) = write_all_vectored(&mut at, &mut parts) {
            // If even this fails, the torn record is past `len`: overwritten by the next append, and
            // refused by its checks until then.
            let _ = self.file.file.set_len(self.len);
            return Err(StoreError::io("append to pack", &self.file.path, error));
        }
        self.len += len as u64;
        self.file.written.store(self.len, Ordering::Release);
        Ok(())
    }
}

/// Positioned writes, so that the file's own cursor never matters.
struct Cursor<'a> {
    file: &'a File,
    offset: u64,
}

impl Write for Cursor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.file.write_at(bytes, self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let len = rustix::io::pwritev(self.file, parts, self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all_vectored(out: &mut impl Write, parts: &mut [io::IoSlice<'_>]) -> io::Result<()> {
    let mut parts = parts;
    io::IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match out.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => io::IoSlice::advance_slices(&mut parts, len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
