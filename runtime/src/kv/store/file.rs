//! Records in a file: a head, then slots of one size. A thread of its own writes; reading is checked, never believed.
//!
//! The file is read by position instead of being mapped: another process that cuts it short then makes a miss here and not
//! a SIGBUS, and it costs one copy of the few megabytes that a hit brings back.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use super::digest::Digest;
use super::record;

pub(super) const MAGIC: [u8; 8] = *b"shimmykv";
const VERSION: u32 = 1;
/// Bytes before the first slot.
const HEAD: usize = 4096;
/// Bytes that wait for the disk at most; what comes then isn't kept.
const MAX_WAITING: usize = 64 << 20;

/// The file of one model's blocks. Only one process at a time has it.
pub(super) struct RecordFile {
    file: Arc<File>,
    slot_bytes: usize,
    jobs: Option<mpsc::SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    num_jobs: u64,
    /// Buffers that come back.
    spare: mpsc::Receiver<Vec<u8>>,
}

#[derive(Default)]
struct Shared {
    /// Jobs done, in their order.
    done: AtomicU64,
    /// The disk refused one.
    has_failed: AtomicBool,
}

enum Job {
    Write {
        slot: usize,
        record: Vec<u8>,
    },
    /// Says when everything before it is done.
    Report(mpsc::Sender<()>),
}

/// What a slot seemed to hold when the file was opened.
pub(super) struct Found {
    pub(super) slot: usize,
    pub(super) digest: Digest,
    pub(super) written: u64,
}

/// Why there is no file to use.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system said so.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another process", path = .0.display())]
    InUse(PathBuf),
    /// Something else has its name.
    #[error("{path} is not a file of cached blocks, and is left alone; name another folder or move it away", path = .0.display())]
    Foreign(PathBuf),
}

impl RecordFile {
    /// Opens or creates the file for records of blocks of `block_bytes`, at most `max_slots` of them, and says what is in it.
    /// A file of another kind of blocks or with a damaged head is emptied; what isn't such a file at all is left alone.
    pub(super) fn open(
        path: &Path,
        layout: &[u8; 32],
        block_bytes: usize,
        max_slots: usize,
    ) -> Result<(Self, Vec<Found>), OpenError> {
        let io_error = |source| OpenError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Whoever reads the cache reads the prompts.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io_error(source)),
        }
        let slot_bytes = record::record_bytes(block_bytes);
        let head = file_head(layout, slot_bytes);
        let len = file.metadata().map_err(io_error)?.len();
        let mut begin = vec![0; HEAD.min(usize::try_from(len).unwrap_or(HEAD))];
        read_at(&file, &mut begin, 0).map_err(io_error)?;
        if len > 0 && !begin.starts_with(&MAGIC) {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        if begin != head {
            if len > 0 {
                tracing::warn!("{}: cached blocks of another kind or damaged; starting over", path.display());
            }
            file.set_len(0).map_err(io_error)?;
            write_at(&file, &head, 0).map_err(io_error)?;
        }
        let most = HEAD as u64 + (max_slots as u64).saturating_mul(slot_bytes as u64);
        if len > most {
            file.set_len(most).map_err(io_error)?;
        }
        let found = scan(&file, slot_bytes).map_err(io_error)?;
        let this = Self::start(Arc::new(file), slot_bytes).map_err(io_error)?;
        Ok((this, found))
    }

    fn start(file: Arc<File>, slot_bytes: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (jobs, inbox) = mpsc::sync_channel::<Job>((MAX_WAITING / slot_bytes).clamp(1, 1024));
        let (back, spare) = mpsc::channel();
        let (file_of_writer, shared_of_writer) = (Arc::clone(&file), Arc::clone(&shared));
        let writer = std::thread::Builder::new().name("kv writer".into()).spawn(move || {
            for job in inbox {
                let (slot, mut record) = match job {
                    Job::Write { slot, record } => (slot, record),
                    Job::Report(to) => {
                        let _ = to.send(());
                        continue;
                    }
                };
                record::seal(&mut record);
                if let Err(error) = write_at(&file_of_writer, &record, slot_at(slot, slot_bytes))
                    && !shared_of_writer.has_failed.swap(true, Ordering::Relaxed)
                {
                    tracing::warn!(%error, "no more computed prompts are kept on disk");
                }
                // Whoever sees the count may read what was written.
                shared_of_writer.done.fetch_add(1, Ordering::Release);
                // Without a receiver nobody needs the buffer.
                let _ = back.send(record);
            }
        })?;
        Ok(Self { file, slot_bytes, jobs: Some(jobs), writer: Some(writer), shared, num_jobs: 0, spare })
    }

    /// The disk refused a record: nothing more is written.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.has_failed.load(Ordering::Relaxed)
    }

    /// A buffer for a record, used before if there is one.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(self.slot_bytes))
    }

    /// Lets a record be written that was begun and has its keys and values. Returns what to ask [`is_written`](Self::is_written)
    /// for; `None`: too much waits for the disk.
    pub(super) fn write(&mut self, slot: usize, record: Vec<u8>) -> Option<u64> {
        self.jobs.as_ref()?.try_send(Job::Write { slot, record }).ok()?;
        self.num_jobs += 1;
        Some(self.num_jobs)
    }

    pub(super) fn is_written(&self, job: u64) -> bool {
        self.shared.done.load(Ordering::Acquire) >= job
    }

    /// Reads a slot, or as much of it as there is.
    pub(super) fn read(&self, slot: usize, record: &mut Vec<u8>) -> io::Result<()> {
        record.resize(self.slot_bytes, 0);
        let len = read_some_at(&self.file, record, slot_at(slot, self.slot_bytes))?;
        record.truncate(len);
        Ok(())
    }

    /// Waits until everything is written.
    pub(super) fn flush(&self) {
        let (report, reported) = mpsc::channel();
        if let Some(jobs) = &self.jobs
            && jobs.send(Job::Report(report)).is_ok()
        {
            // An error is a writer that is gone: then there is nothing to wait for.
            let _ = reported.recv();
        }
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of cached blocks panicked");
        }
    }
}

fn slot_at(slot: usize, slot_bytes: usize) -> u64 {
    HEAD as u64 + slot as u64 * slot_bytes as u64
}

fn file_head(layout: &[u8; 32], slot_bytes: usize) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((slot_bytes as u64).to_le_bytes());
    head.extend(layout);
    head.resize(HEAD, 0);
    head
}

/// The slots that are there in full and don't say that they are empty.
fn scan(file: &File, slot_bytes: usize) -> io::Result<Vec<Found>> {
    let len = file.metadata()?.len().saturating_sub(HEAD as u64);
    let num_slots = usize::try_from(len.div_ceil(slot_bytes as u64)).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    for slot in 0..num_slots {
        let mut head = [0; 80];
        read_some_at(file, &mut head, slot_at(slot, slot_bytes))?;
        if let Some((digest, written)) = record::peek(&head) {
            found.push(Found { slot, digest, written });
        }
    }
    Ok(found)
}

fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    if read_some_at(file, bytes, at)? < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Fills `bytes`, or less at the end of the file; says how many.
fn read_some_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match read_once(file, &mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(unix)]
fn read_once(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn read_once(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        bytes = &bytes[len..];
        at += len as u64;
    }
    Ok(())
}
