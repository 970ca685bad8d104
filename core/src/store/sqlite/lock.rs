//! One owner per file. The advisory lock is the kernel's: it is gone with its holder, however that one ends.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::store::{StoreError, StoreErrorKind};

const OPENING: &str = "open";

/// Held while anything of the store is open; unlocked when dropped.
#[derive(Debug)]
pub(super) struct OwnerLock {
    _file: File,
}

/// Creates the database's folder and empty file where they are missing, for this user only, and takes the lock.
/// Returns the path without symbolic links: two names of one file must meet at one lock.
pub(super) fn claim(path: &Path) -> Result<(PathBuf, OwnerLock), StoreError> {
    let path = prepare(path).map_err(|e| StoreError::new(StoreErrorKind::Unavailable, OPENING, e))?;
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    // The lock file is never removed: a removed name could be locked twice, by two files.
    let file = private_file(Path::new(&name)).map_err(|e| StoreError::new(StoreErrorKind::Unavailable, OPENING, e))?;
    match file.try_lock() {
        Ok(()) => Ok((path, OwnerLock { _file: file })),
        Err(TryLockError::WouldBlock) => {
            let why = format!("another process (or another store in this one) has {} open", path.display());
            Err(StoreError::new(StoreErrorKind::Refused, OPENING, why))
        }
        Err(TryLockError::Error(e)) => Err(StoreError::new(StoreErrorKind::Unavailable, OPENING, e)),
    }
}

fn prepare(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.exists() {
        private_folder(folder)?;
    }
    let folder = folder.canonicalize()?;
    let file = folder.join(name);
    if !file.exists() {
        private_file(&file)?;
        // The names must be as durable as what will be acknowledged under them.
        File::open(&folder)?.sync_all()?;
        if let Some(above) = folder.parent() {
            File::open(above)?.sync_all()?;
        }
    }
    file.canonicalize()
}

#[cfg(unix)]
fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)
}

/// Opens for writing, creating it for this user only. SQLite gives its side files the database's permissions.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)
}
