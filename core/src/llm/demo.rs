//! The built-in demo model: no network, no intelligence, and it says so. It lets the product run on a fresh machine, and
//! tests hold a conversation without a server. The same prompt always gives the same answer.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use super::tokens::{estimate_prompt_tokens, estimate_tokens};
use super::{Chunk, ChunkStream, Prompt, PromptRole, Provider, ProviderError};
use crate::domain::entry::{FinishReason, Usage};

/// About as fast as a small model on a laptop.
pub const DEFAULT_WORD_DELAY: Duration = Duration::from_millis(30);
/// Characters of the question that are quoted.
const MAX_QUOTE_CHARS: usize = 500;
/// Paragraphs of a long answer.
const LONG_SECTIONS: usize = 8;

const LABEL: &str =
    "This is the built-in demo model: nothing you write leaves this machine, and nothing here was thought by anyone.";
const SHORT: &str = "Choose another model, or add a provider to the configuration, to get real answers. \
    Write a question with the word **long** in it to see a long answer stream.";
const LONG_INTRO: &str = "You asked for something long. Here is what a long answer looks like:\n\n\
    - text arrives *word by word*, and survives a reload of the page,\n\
    - markdown is rendered while it streams,\n\
    - you can stop it at any moment, from any device.\n\n\
    ```rust\n\
    fn main() {\n    \
        for n in 1..=3 {\n        \
            println!(\"line {n} of a code block\");\n    \
        }\n\
    }\n\
    ```\n";
const LONG_PARAGRAPH: &str = "The words of this section only fill space, so that there is enough time to close the lid, walk \
    somewhere else, open it again, and find that the answer went on without you. Nothing in it is true or false, and \
    nothing in it has to be read. If your connection is slow, several words arrive at once; if it breaks, the page asks \
    for what it missed and continues where it stopped.";
const END: &str = "That was the demo model. Nothing was lost.";

/// The demo model.
#[derive(Debug, Clone)]
pub struct Demo {
    word_delay: Duration,
}

impl Demo {
    /// With this pause before each word; zero for none.
    #[must_use]
    pub fn new(word_delay: Duration) -> Self {
        Self { word_delay }
    }
}

impl Default for Demo {
    fn default() -> Self {
        Self::new(DEFAULT_WORD_DELAY)
    }
}

#[async_trait]
impl Provider for Demo {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let question = prompt.messages.iter().rev().find(|message| message.role == PromptRole::User);
        let answer = answer(question.map_or("", |message| message.text.as_str()));
        let chunks = chunks(&answer, estimate_prompt_tokens(&prompt.messages), prompt.max_output_tokens);
        let delay = self.word_delay;
        Ok(stream::iter(chunks)
            .then(move |chunk| async move {
                if matches!(chunk, Chunk::Text(_)) && !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                Ok(chunk)
            })
            .boxed())
    }

    fn is_demo(&self) -> bool {
        true
    }
}

fn answer(question: &str) -> String {
    let mut answer = format!("{LABEL}\n\n");
    if !question.trim().is_empty() {
        answer.push_str("You wrote:\n\n");
        answer.push_str(&quote(question));
        answer.push('\n');
    }
    if wants_long(question) {
        answer.push_str(LONG_INTRO);
        for section in 1..=LONG_SECTIONS {
            answer.push_str(&format!("\n### Section {section} of {LONG_SECTIONS}\n\n{LONG_PARAGRAPH}\n"));
        }
        answer.push_str(&format!("\n{END}\n"));
    } else {
        answer.push_str(&format!("{SHORT}\n"));
    }
    answer
}

fn wants_long(question: &str) -> bool {
    question.split(|c: char| !c.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case("long"))
}

/// The question as a markdown quote.
fn quote(question: &str) -> String {
    let mut shown: String = question.trim().chars().take(MAX_QUOTE_CHARS).collect();
    if shown.len() < question.trim().len() {
        shown.push('…');
    }
    shown.lines().map(|line| format!("> {line}\n")).collect()
}

/// The answer in words, cut at the output limit.
fn chunks(answer: &str, prompt_tokens: u64, max_output_tokens: u32) -> Vec<Chunk> {
    let mut tokens = 0;
    let mut finish = FinishReason::Stop;
    let mut chunks = Vec::new();
    // The white space after a word belongs to it, so that the pieces joined are the text.
    for word in answer.split_inclusive(char::is_whitespace) {
        let cost = estimate_tokens(word);
        if tokens + cost > u64::from(max_output_tokens) {
            finish = FinishReason::Length;
            break;
        }
        tokens += cost;
        chunks.push(Chunk::Text(word.to_owned()));
    }
    chunks.push(Chunk::Usage(Usage { prompt_tokens, completion_tokens: tokens, cached_tokens: 0, estimated: true }));
    chunks.push(Chunk::Finished(finish));
    chunks
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::llm::guard::{Guard, GuardLimits};
    use crate::llm::{PromptMessage, conformance};

    fn prompt(question: &str, max_output_tokens: u32) -> Prompt {
        Prompt {
            upstream_model: "demo".to_owned(),
            messages: vec![
                PromptMessage { role: PromptRole::User, text: "earlier".to_owned() },
                PromptMessage { role: PromptRole::User, text: question.to_owned() },
            ],
            max_output_tokens,
            user_hash: String::new(),
            conversation: None,
            ..Prompt::default()
        }
    }

    async fn ask(question: &str, max_output_tokens: u32) -> (String, Vec<Chunk>) {
        let stream = Demo::new(Duration::ZERO).generate(prompt(question, max_output_tokens)).await.expect("demo");
        let chunks: Vec<Chunk> = stream.map(|chunk| chunk.expect("chunk")).collect().await;
        let text =
            chunks.iter().filter_map(|chunk| if let Chunk::Text(text) = chunk { Some(text.as_str()) } else { None });
        (text.collect(), chunks)
    }

    #[tokio::test]
    async fn it_says_what_it_is_and_quotes_the_last_question() {
        let (text, chunks) = ask("one\ntwo", 4000).await;
        assert!(text.starts_with("This is the built-in demo model"));
        assert!(text.contains("\n> one\n> two\n") && !text.contains("earlier"));
        assert_eq!(chunks.last(), Some(&Chunk::Finished(FinishReason::Stop)));
        assert!(matches!(
            chunks[chunks.len() - 2],
            Chunk::Usage(Usage { estimated: true, completion_tokens: 1.., .. })
        ));
    }

    #[tokio::test]
    async fn the_word_long_gives_a_long_answer_with_list_and_code() {
        let (text, chunks) = ask("a LONG one, please", 4000).await;
        assert!(text.split_whitespace().count() > 400);
        assert!(text.contains("\n- ") && text.contains("```rust\nfn main() {\n    for"));
        assert!(text.ends_with(&format!("{END}\n")));
        assert!(chunks.len() > 400, "word by word");
        assert!(ask("longer, belong", 4000).await.0.len() < 1000, "the word alone counts");
    }

    #[tokio::test]
    async fn it_keeps_the_contract_of_providers_also_behind_the_guard() {
        let demo = Demo::new(Duration::ZERO);
        let bare = conformance::read(&demo).await;
        assert_eq!((bare.0.last(), &bare.1), (Some(&Chunk::Finished(FinishReason::Stop)), &None));
        let guarded = Guard::new(Arc::new(demo), GuardLimits::default());
        assert_eq!(conformance::read(&guarded).await, bare);
        assert!(guarded.is_demo());
    }

    #[tokio::test]
    async fn the_same_prompt_gives_the_same_answer() {
        assert_eq!(ask("long", 4000).await, ask("long", 4000).await);
    }

    #[tokio::test]
    async fn the_output_limit_ends_it_with_length() {
        let (text, chunks) = ask("hi", 3).await;
        assert_eq!(text, "This is ", "two tokens and one");
        assert_eq!(chunks.last(), Some(&Chunk::Finished(FinishReason::Length)));
    }

    #[tokio::test]
    async fn a_very_long_question_is_quoted_in_part() {
        let (text, _) = ask(&"ü".repeat(2000), 4000).await;
        assert!(text.contains(&format!("> {}…\n", "ü".repeat(500))));
    }

    #[tokio::test(start_paused = true)]
    async fn each_word_waits() {
        let started = tokio::time::Instant::now();
        let stream = Demo::default().generate(prompt("hi", 4000)).await.expect("demo");
        let words = stream.filter(|chunk| std::future::ready(matches!(chunk, Ok(Chunk::Text(_))))).count().await;
        assert!(started.elapsed() >= DEFAULT_WORD_DELAY * u32::try_from(words).expect("few"));
    }
}
