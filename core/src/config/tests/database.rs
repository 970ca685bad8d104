//! The URL of a database, and what production wants of it.

use super::*;

#[test]
fn the_url_of_a_database_with_a_password_is_a_secret_and_may_be_in_a_file() {
    const URL: &str = "mongodb://chatbox:7LrT2vWc8KdF5hJn@db.test/chatbox?tls=true&replicaSet=rs0";
    let list = [("CHATBOX_CORE_STORE_URL", URL)];
    let config = load(&good(), &list).expect("good");
    assert!(matches!(config.store.target(), Ok(StoreTarget::Mongo(uri)) if uri.expose() == URL));
    let text = settings::print(&config);
    assert!(!text.contains("7LrT2vWc8KdF5hJn@") && !format!("{config:?}").contains("5hJn@"), "{text}");
    let sqlite = settings::print(&load(&good(), &[]).expect("good"));
    assert!(sqlite.contains("sqlite:./data/chatbox.db"), "a path is shown: {sqlite}");

    let in_file = [("CHATBOX_CORE_STORE_URL_FILE", "/run/url")];
    let read = |path: &Path| match path.to_str() {
        Some("/run/url") => Ok(format!("{URL}\n")),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let config = Config::load(Some(&good()), &vars(&in_file), &read).expect("from the file");
    assert_eq!(config.store.url.expose(), URL);
    let both = Config::load(Some(&good()), &vars(&[list[0], in_file[0]]), &read).expect_err("both").0;
    assert_eq!(both, ["store.url, store.url_file: set only one of them"]);
}

#[test]
fn production_wants_authentication_and_tls_towards_the_database() {
    for (url, starts) in [
        ("mongodb://db.test/chatbox?tls=true", "must have a user"),
        ("mongodb://chatbox@db.test/?tls=true", "must have a user"),
        ("mongodb://chatbox:changeme@db.test/?tls=true", "has a placeholder"),
        ("mongodb://chatbox:7LrT2vWc8KdF5hJn@db.test/chatbox", "must have tls=true"),
        ("mongodb://chatbox:7LrT2vWc8KdF5hJn@127.0.0.1,db.test:27017/", "must have tls=true"),
        ("mongodb://chatbox:7LrT2vWc8KdF5hJn@db.test/?tls=true&tlsInsecure=true", "must not switch"),
        ("mongodb+srv://chatbox:7LrT2vWc8KdF5hJn@db.test/?tls=true", "mongodb+srv is not"),
        ("mongodb://", "must be like"),
        ("mysql://x", "must be like"),
    ] {
        let mistakes = load(&good(), &[("CHATBOX_CORE_STORE_URL", url)]).expect_err(url);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].starts_with(&format!("store.url: {starts}")), "{mistakes:?}");
        assert!(!mistakes[0].contains("7LrT2vWc8KdF5hJn"));
    }
    for url in [
        "mongodb://chatbox:7LrT2vWc8KdF5hJn@a.test,b.test:27018/chatbox?replicaSet=rs0&tls=true",
        "mongodb://a.test/?authMechanism=MONGODB-X509&ssl=true",
        "mongodb://chatbox:7LrT2vWc8KdF5hJn@localhost,[::1]:27018/",
    ] {
        load(&good(), &[("CHATBOX_CORE_STORE_URL", url)]).expect(url);
    }
    let dev = [("CHATBOX_PROFILE", "dev"), ("CHATBOX_CORE_STORE_URL", "mongodb://db.test/")];
    load(&good(), &dev).expect("for development");
}
