//! The page, in a browser, with a real model behind it.

use std::process::Command;

use crate::harness::{dev::ChatboxDev, llama::Llama, process::Process, tools::workspace, wait::LIMIT};

#[tokio::test]
async fn heavy_a_real_model_answers_through_the_page() {
    assert!(workspace().join("edge/web/node_modules/playwright-core").exists(), "run `make web`");
    let llama = Llama::start().await.unwrap();
    let models = "[{id = \"smollm2\", context_tokens = 2048, max_output_tokens = 24}]";
    let settings = [
        ("CHATBOX_CORE_PROVIDERS_OPENAI_BASE_URL", llama.base_url()),
        ("CHATBOX_CORE_PROVIDERS_OPENAI_FIRST_BYTE_TIMEOUT", "60s".to_owned()),
        ("CHATBOX_CORE_MODELS", models.to_owned()),
        ("CHATBOX_CORE_DEFAULT_MODEL", "smollm2".to_owned()),
    ];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let chatbox = ChatboxDev::start_with(&settings, &[]).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("node");
    command
        .arg("--test")
        .arg(workspace().join("tests/scripts/page_with_model.mjs"))
        .env("CHATBOX_URL", format!("http://{}/chatbox/", chatbox.addresses().http))
        .env("CHATBOX_TOKEN", chatbox.token("alice", "user").unwrap())
        .env("CHATBOX_TOKEN_B", chatbox.token("bob", "user").unwrap());
    let mut page = Process::start("the page", command, &folder.path().join("log")).unwrap();
    let status = page.wait_exit(6 * LIMIT).await.unwrap();
    assert!(status.success(), "{}", page.log());
    chatbox.shutdown().await.unwrap();
}
