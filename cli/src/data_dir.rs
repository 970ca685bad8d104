//! The folder of an instance on this machine: database, sealing key, token secret. Folder and files are for their owner
//! alone; secrets are made once and kept.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chatbox_proto::token::Secret;

const TOKEN_SECRET: &str = "token.secret";
const SEALING_KEY: &str = "sealing.key";
const DATABASE: &str = "chatbox.db";

const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// What we write is 44 characters; whatever is not near that is not ours.
const MAX_SECRET_BYTES: u64 = 4_096;
const MIN_SECRET_BYTES: usize = 32;

/// An instance's folder.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// Opens the folder, making it for its owner alone when it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = || format!("data folder {}", path.display());
        match fs::metadata(path) {
            Ok(found) => ensure!(found.is_dir(), "data folder {}: it is a file, not a folder", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parents = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                parents.map_or(Ok(()), fs::create_dir_all).with_context(failed)?;
                match DirBuilder::new().mode(PRIVATE_FOLDER).create(path) {
                    // Another process was faster.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made.with_context(failed)?,
                }
                // Nobody should commit keys because the folder happens to be in a repository.
                private_file(&path.join(".gitignore"), "*\n").with_context(failed)?;
            }
            Err(error) => return Err(error).with_context(failed),
        }
        Ok(Self(path.canonicalize().with_context(failed)?))
    }

    /// Opens the folder of an instance that was there before.
    pub(crate) fn existing(path: &Path) -> Result<Self> {
        ensure!(
            path.join(TOKEN_SECRET).is_file(),
            "there is no instance in {}: start one with `chatbox dev`, name its folder with --data, or give --token",
            path.display()
        );
        Self::open(path)
    }

    /// Where it is, without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the database is or will be.
    pub(crate) fn database(&self) -> PathBuf {
        self.0.join(DATABASE)
    }

    /// What tokens are signed with.
    pub(crate) fn token_secret(&self) -> Result<Secret> {
        self.secret(TOKEN_SECRET)
    }

    /// What everything stored is sealed with. Never made anew beside a database, which could not be read with it.
    pub(crate) fn sealing_key(&self) -> Result<Secret> {
        let key = self.0.join(SEALING_KEY);
        ensure!(
            key.exists() || !self.database().exists(),
            "{} is missing, and without it {} cannot be read: restore the key, or choose another folder with --data",
            key.display(),
            self.database().display()
        );
        self.secret(SEALING_KEY)
    }

    /// The secret in this file, made when it is not there. Two processes that make it at once end up with the same one.
    fn secret(&self, name: &str) -> Result<Secret> {
        let path = self.0.join(name);
        let failed = || path.display().to_string();
        if !path.exists() {
            let fresh: [u8; 32] = rand::random();
            let draft = self.0.join(format!(".{name}.{:016x}", rand::random::<u64>()));
            private_file(&draft, &format!("{}\n", STANDARD.encode(fresh))).with_context(failed)?;
            // A link, unlike a rename, does not replace what another process put there in the meantime.
            let linked = fs::hard_link(&draft, &path);
            fs::remove_file(&draft).with_context(failed)?;
            match linked {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked.with_context(failed)?,
            }
            File::open(&self.0).and_then(|folder| folder.sync_all()).with_context(failed)?;
        }
        read_secret(&path)
    }
}

fn private_file(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

fn read_secret(path: &Path) -> Result<Secret> {
    let failed = || path.display().to_string();
    let found = fs::metadata(path).with_context(failed)?;
    ensure!(found.len() <= MAX_SECRET_BYTES, "{}: this is not a secret of ours", path.display());
    if found.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(PRIVATE_FILE)).with_context(failed)?;
    }
    let text = fs::read_to_string(path).with_context(failed)?;
    let secret = text.trim();
    ensure!(
        secret.len() >= MIN_SECRET_BYTES,
        "{}: the secret is cut short; restore the file, or choose another folder with --data",
        path.display()
    );
    Ok(Secret::new(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn folder_and_secrets_are_for_their_owner_alone_and_stay_the_same() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let (secret, key) = {
            let data = DataDir::open(&path).unwrap();
            (data.token_secret().unwrap(), data.sealing_key().unwrap())
        };
        assert_eq!(mode(&path), 0o700);
        assert_eq!((mode(&path.join(TOKEN_SECRET)), mode(&path.join(SEALING_KEY))), (0o600, 0o600));
        assert_ne!(secret.expose(), key.expose());
        assert_eq!(STANDARD.decode(key.expose()).unwrap().len(), 32);
        let again = DataDir::open(&path).unwrap();
        assert_eq!((again.token_secret().unwrap(), again.sealing_key().unwrap()), (secret, key));
        // No draft is left behind.
        let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".gitignore", SEALING_KEY, TOKEN_SECRET]);
    }

    #[test]
    fn processes_that_make_the_secret_at_once_get_the_same_one() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let start = std::sync::Barrier::new(8);
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let data = DataDir::open(&path);
                        data.unwrap().token_secret().unwrap().expose().to_owned()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    }

    #[test]
    fn a_file_that_others_can_read_is_closed_to_them() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::open(temporary.path()).unwrap();
        data.token_secret().unwrap();
        let file = temporary.path().join(TOKEN_SECRET);
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        data.token_secret().unwrap();
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn a_lost_sealing_key_is_not_replaced_when_there_is_a_database() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::open(temporary.path()).unwrap();
        fs::write(data.database(), "").unwrap();
        let error = data.sealing_key().unwrap_err().to_string();
        assert!(error.contains("sealing.key is missing") && !error.contains('\n'), "{error}");
        assert!(!temporary.path().join(SEALING_KEY).exists());
    }

    #[test]
    fn what_is_no_folder_or_no_secret_is_refused_in_one_line() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(DataDir::open(&file).unwrap_err().to_string().contains("not a folder"));
        fs::write(temporary.path().join(TOKEN_SECRET), "short\n").unwrap();
        let error = DataDir::open(temporary.path()).unwrap().token_secret().unwrap_err();
        assert!(error.to_string().contains("cut short") && !error.to_string().contains("short\n"), "{error}");
    }
}
