//! The sample settings of deployments/ are accepted by the binaries they are for, and print without secrets.

use std::process::Command;

use crate::harness::tools::{binary, workspace};

const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";
const KEY: &str = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=";

#[test]
fn the_sample_settings_are_accepted_and_their_secrets_not_shown() {
    for role in ["core", "edge"] {
        let mut command = Command::new(binary(&format!("chatbox-{role}")).unwrap());
        command.env_clear().env("CHATBOX_TOKEN_SECRET", SECRET);
        if role == "core" {
            command.env("CHATBOX_CORE_KEYS_RING_0_KEY", KEY);
        }
        let settings = workspace().join(format!("deployments/{role}.toml"));
        let output = command.arg("--config").arg(settings).arg("--check-config").output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{role}: {said}");
        assert!(said.contains("listen") && !said.contains(SECRET) && !said.contains(KEY), "{role}: {said}");
    }
}
