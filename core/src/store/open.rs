//! From a configured URL to a store.

use std::{path::Path, sync::Arc};

use super::{
    SessionStore, StoreError, StoreErrorKind,
    sqlite::{SqliteOptions, SqliteStore},
};

/// Opens the store that `url` names: `sqlite:PATH`, relative or absolute. Blocks while it does.
///
/// # Errors
/// `Refused` for any other URL, and whatever opening fails with.
pub fn open(url: &str) -> Result<Arc<dyn SessionStore>, StoreError> {
    // The URL itself stays out of the errors: other schemes carry passwords.
    match url.split_once(':') {
        Some(("sqlite", path)) => Ok(Arc::new(SqliteStore::open(sqlite_path(path)?, &SqliteOptions::default())?)),
        Some(("mongodb" | "mongodb+srv", _)) => Err(refused("mongodb: is not built in yet; use sqlite:PATH")),
        _ => Err(refused("the store's URL must be sqlite:PATH")),
    }
}

fn sqlite_path(path: &str) -> Result<&Path, StoreError> {
    // `sqlite:///var/x` is the same file as `sqlite:/var/x`; in `sqlite://x` the x would be a host.
    let path = match path.strip_prefix("//") {
        Some(rest) if !rest.starts_with('/') => return Err(refused("sqlite: takes a path and no host")),
        Some(rest) => rest,
        None => path,
    };
    if path.is_empty() || path.starts_with(':') || path.contains('?') {
        return Err(refused("sqlite: must be followed by the path of a file, without parameters"));
    }
    Ok(Path::new(path))
}

fn refused(why: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Refused, "open", why)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[tokio::test]
    async fn a_sqlite_url_opens_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for form in ["sqlite:", "sqlite://"] {
            let path = folder.path().join(format!("made/{}.db", form.len()));
            let store = open(&format!("{form}{}", path.display())).unwrap();
            store.ping().await.unwrap();
            store.close().await;
            assert!(path.exists());
        }
    }

    #[test]
    fn other_urls_are_refused_with_a_reason_and_without_repeating_them() {
        for (url, reason) in [
            ("mongodb://user:hunter2@db/chat", "not built in yet"),
            ("mongodb+srv://user:hunter2@db/chat", "not built in yet"),
            ("postgres://user:hunter2@db/chat", "must be sqlite:PATH"),
            ("hunter2", "must be sqlite:PATH"),
            ("sqlite:", "path of a file"),
            ("sqlite::memory:", "path of a file"),
            ("sqlite:chat.db?password=hunter2", "path of a file"),
            ("sqlite://hunter2/chat.db", "no host"),
        ] {
            let error = open(url).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Refused, "{url}");
            let text = format!("{error}: {}", error.source().unwrap());
            assert!(text.contains(reason) && !text.contains("hunter2"), "{url}: {text}");
        }
    }
}
