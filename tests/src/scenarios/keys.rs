//! The keys that what is stored is sealed with: rotated while it runs, verified when it stands still.

use std::{net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use chatbox_core::seal::KeyRing;
use chatbox_proto::v1::{DeleteSessionRequest, ListMessagesRequest, ListModelsRequest, chat_request::Open};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    checker::faulty::{ABORT, Call, Failpoint, Side},
    harness::{
        client::{Addresses, Client, Transport},
        grpc,
        ports::free_port,
        process::Process,
        stack::SECRET,
        token::{Minter, claims},
        tools::binary,
        wait::{LIMIT, wait_for},
    },
};

/// A core on one file, started again and again with other rings.
struct Installation {
    folder: TempDir,
    grpc: SocketAddr,
    keys: [String; 2],
    runs: u32,
}

impl Installation {
    fn new() -> Self {
        let keys = [KeyRing::generate_key(), KeyRing::generate_key()];
        Self { folder: tempfile::tempdir().unwrap(), grpc: free_port().unwrap(), keys, runs: 0 }
    }

    /// Settings with some of the keys `k0` and `k1`, the last one as the primary.
    fn settings(&self, ring: &[usize]) -> PathBuf {
        let keys: Vec<_> = ring.iter().map(|n| format!("{{id = \"k{n}\", key = \"{}\"}}", self.keys[*n])).collect();
        let text = format!(
            "profile = \"dev\"\nlisten = \"{}\"\nmetrics_listen = \"\"\ntoken.secret = \"{SECRET}\"\n\
             store.url = \"sqlite:{}\"\nkeys.primary = \"k{}\"\nkeys.ring = [{}]\n\
             drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n",
            self.grpc,
            self.database().display(),
            ring.last().unwrap(),
            keys.join(", "),
        );
        let file = self.folder.path().join("core.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("chatbox.db")
    }

    /// Whether these bytes are anywhere in the files of the database.
    fn holds(&self, bytes: &[u8]) -> bool {
        let ours =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("chatbox.db"));
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).filter(ours);
        files.map(|file| std::fs::read(file).unwrap()).any(|file| file.windows(bytes.len()).any(|part| part == bytes))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program).unwrap());
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.folder.path());
        command
    }

    async fn start(&mut self, ring: &[usize]) -> Process {
        self.start_as("chatbox-core", ring, &[]).await
    }

    async fn start_as(&mut self, program: &str, ring: &[usize], vars: &[(&str, String)]) -> Process {
        self.runs += 1;
        let mut command = self.command(program);
        command.arg("--config").arg(self.settings(ring)).envs(vars.iter().map(|(name, value)| (name, value)));
        let log = self.folder.path().join(format!("{}.log", self.runs));
        let mut process = Process::start("chatbox-core", command, &log).unwrap();
        let core = self.core("alice");
        let ready = || {
            let mut core = core.clone();
            async move { core.list_models(ListModelsRequest {}).await.ok() }
        };
        process.wait_ready(LIMIT, ready).await.unwrap();
        process
    }

    fn token(&self, user: &str, role: &str) -> String {
        Minter::hs256(SECRET).mint(&claims(user, role)).unwrap()
    }

    fn core(&self, user: &str) -> grpc::Core {
        grpc::core(grpc::channel(self.grpc).unwrap(), Some(&self.token(user, "user"))).unwrap()
    }

    async fn talk(&self, user: &str) -> String {
        let addresses = Addresses { http: self.grpc, grpc: self.grpc };
        let mut client = Client::connect(Transport::Grpc, addresses, &self.token(user, "user")).await.unwrap();
        let opened = client.open(Open::default()).await.unwrap();
        client.caught_up().await.unwrap();
        client.say("m1", "keep this").await.unwrap();
        client.reply().await.unwrap();
        opened.session.unwrap().session_id
    }

    async fn history(&self, user: &str, session_id: &str) -> Vec<String> {
        let request = ListMessagesRequest { session_id: session_id.to_owned(), ..Default::default() };
        let page = self.core(user).list_messages(request).await.unwrap().into_inner();
        page.messages.into_iter().map(|message| message.text).collect()
    }

    /// `chatbox admin rotate-keys` as this role: whether it succeeded, and what it said.
    fn rotate(&self, role: &str) -> (bool, String) {
        let mut command = self.command("chatbox");
        command.args(["admin", "rotate-keys", "--reason", "yearly", "--grpc", &format!("http://{}", self.grpc)]);
        finish(command.env("CHATBOX_TOKEN", self.token("root", role)))
    }

    /// `chatbox-core keys verify`: whether it succeeded, and what it said.
    fn verify(&self, ring: &[usize]) -> (bool, String) {
        let mut command = self.command("chatbox-core");
        finish(command.arg("--config").arg(self.settings(ring)).args(["keys", "verify"]))
    }
}

fn finish(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), said)
}

#[tokio::test]
async fn after_an_online_rotation_the_old_key_is_not_needed() {
    let mut installation = Installation::new();
    let core = installation.start(&[0]).await;
    let mut sessions = Vec::new();
    for user in ["alice", "bob", "carol"] {
        let id = installation.talk(user).await;
        sessions.push((user, id.clone(), installation.history(user, &id).await));
    }
    stop(core).await;

    let core = installation.start(&[0, 1]).await;
    // One of them is live meanwhile.
    let live = installation.talk("dave").await;
    let (done, said) = installation.rotate("chat_admin");
    assert!(!done && said.contains("role admin"), "{said}");
    let (done, said) = installation.rotate("admin");
    assert!(done && said.contains("3 of 4 data keys wrapped anew") && said.contains("complete"), "{said}");
    let (done, said) = installation.rotate("admin");
    assert!(done && said.contains("0 of 4"), "{said}");
    assert_eq!(installation.history("dave", &live).await.len(), 2);
    stop(core).await;

    let core = installation.start(&[1]).await;
    for (user, id, before) in &sessions {
        assert_eq!(&installation.history(user, id).await, before);
    }
    stop(core).await;
    let (fine, said) = installation.verify(&[1]);
    assert!(fine && said.contains("4 sessions (0 erased)") && said.contains(" 0 findings"), "{said}");
    let (fine, said) = installation.verify(&[0]);
    assert!(!fine && said.contains("self-test"), "{said}");
}

#[tokio::test]
async fn verification_names_what_is_not_sealed_altered_moved_or_missing() {
    let mut installation = Installation::new();
    let core = installation.start(&[0]).await;
    let mut sessions = Vec::new();
    for user in ["alice", "bob", "carol", "dave", "erin"] {
        sessions.push(installation.talk(user).await);
    }
    stop(core).await;
    assert!(installation.verify(&[0]).0);

    let database = Connection::open(installation.database()).unwrap();
    let change = |sql: &str| {
        // Ids are bytes there.
        let sql = (0..5).fold(sql.to_owned(), |sql, n| {
            sql.replace(&format!("$S{n}"), &format!("x'{}'", sessions[n].replace('-', "")))
        });
        assert_eq!(database.execute(&sql, []).unwrap(), 1, "{sql}");
    };
    change("UPDATE log SET sealed = CAST('[{\"at\":1}]' AS BLOB) WHERE session_id = $S0 AND first_seq = 1");
    change("UPDATE log SET sealed = CAST(substr(sealed, 2) AS BLOB) WHERE session_id = $S0 AND first_seq = 3");
    change("UPDATE sessions SET wrapped_key = (SELECT wrapped_key FROM sessions WHERE id = $S0) WHERE id = $S1");
    change("UPDATE sessions SET state = CAST(substr(state, 1, length(state) - 1) || x'00' AS BLOB) WHERE id = $S2");
    change("DELETE FROM log WHERE session_id = $S3 AND first_seq = 1");
    drop(database);

    let (fine, said) = installation.verify(&[0]);
    assert!(!fine && said.contains("5 sessions") && said.contains(" 5 findings"), "{said}");
    for (session, found) in [
        (0, "log above entry 0 is not sealed"),
        (0, "log above entry 2 does not open"),
        (1, "data key does not open"),
        (2, "folded state does not open"),
        (3, "log above entry 0 opens and is not what should be there"),
    ] {
        assert!(said.contains(&format!("session {}: {found}", sessions[session])), "{found}: {said}");
    }
    assert!(!said.contains(&sessions[4]), "{said}");
}

#[tokio::test]
async fn of_an_erased_session_no_file_of_the_database_holds_the_key() {
    let mut installation = Installation::new();
    let core = installation.start(&[0]).await;
    let (erased, kept) = (installation.talk("alice").await, installation.talk("bob").await);
    stop(core).await;
    let database = Connection::open(installation.database()).unwrap();
    let key = |session: &str| -> Vec<u8> {
        let sql = format!("SELECT wrapped_key FROM sessions WHERE id = x'{}'", session.replace('-', ""));
        database.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    let (erased_key, kept_key) = (key(&erased), key(&kept));
    drop(database);
    assert!(installation.holds(&erased_key) && installation.holds(&kept_key));

    let core = installation.start(&[0]).await;
    let delete = DeleteSessionRequest { session_id: erased.clone() };
    let mut mallory = installation.core("mallory");
    assert_eq!(mallory.delete_session(delete.clone()).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut alice = installation.core("alice");
    // Twice is once.
    for _ in 0..2 {
        alice.delete_session(delete.clone()).await.unwrap();
    }
    let list = ListMessagesRequest { session_id: erased, ..Default::default() };
    assert_eq!(alice.list_messages(list).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(installation.history("bob", &kept).await.len(), 2);
    stop(core).await;
    assert!(!installation.holds(&erased_key), "the key is in a file of the database");
    assert!(installation.holds(&kept_key));
    let (fine, said) = installation.verify(&[0]);
    assert!(fine && said.contains("2 sessions (1 erased)") && said.contains(" 0 findings"), "{said}");
}

#[tokio::test]
async fn a_core_that_dies_at_the_destruction_of_a_key_is_followed_by_one_that_completes_it() {
    for side in Side::ALL {
        let mut installation = Installation::new();
        let failpoint = Failpoint { call: Call::EraseSession, side, nth: 1 };
        let mut core = installation.start_as("faulty-core", &[0], &[(ABORT, failpoint.to_string())]).await;
        let session_id = installation.talk("alice").await;
        let delete = DeleteSessionRequest { session_id: session_id.clone() };
        installation.core("alice").delete_session(delete.clone()).await.expect_err("it died");
        core.wait_exit(LIMIT).await.unwrap();

        let core = installation.start(&[0]).await;
        // Nobody asks for the session.
        let destroyed = || async {
            let database = Connection::open(installation.database()).ok()?;
            let erased = "SELECT count(*) FROM sessions WHERE length(wrapped_key) = 0";
            let count: u32 = database.query_row(erased, [], |row| row.get(0)).ok()?;
            (count == 1).then_some(())
        };
        wait_for("the destruction", LIMIT, destroyed).await.unwrap();
        installation.core("alice").delete_session(delete).await.unwrap();
        let list = ListMessagesRequest { session_id, ..Default::default() };
        let answer = installation.core("alice").list_messages(list).await;
        assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound);
        stop(core).await;
        let (fine, said) = installation.verify(&[0]);
        assert!(fine && said.contains("1 sessions (1 erased)"), "{said}");
    }
}

async fn stop(mut core: Process) {
    let status = core.terminate(Duration::from_secs(20)).await.unwrap();
    assert!(status.success(), "{}", core.log());
}
