//! Token estimates, for the context budget and for replies whose provider sends no usage.
//!
//! A tokenizer per model would be exact and is not worth its tables: four bytes per token is close for English and on the
//! safe side (too many) for most other scripts in UTF-8, where three bytes make one character and often one token.

use super::PromptMessage;
use crate::domain::entry::Usage;

/// UTF-8 bytes counted as one token.
const BYTES_PER_TOKEN: usize = 4;
/// Role and separators that a chat template puts around each message.
const TOKENS_PER_MESSAGE: u64 = 4;

/// Tokens of a text: its bytes divided by four, rounded up. Marked as an estimate wherever it is stored.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    text.len().div_ceil(BYTES_PER_TOKEN) as u64
}

/// Tokens a message takes in a prompt: its text plus four.
#[must_use]
pub fn estimate_message_tokens(text: &str) -> u64 {
    estimate_tokens(text) + TOKENS_PER_MESSAGE
}

/// Tokens of a whole prompt.
#[must_use]
pub fn estimate_prompt_tokens(messages: &[PromptMessage]) -> u64 {
    messages.iter().map(|message| estimate_message_tokens(&message.text)).sum()
}

/// Usage of a reply whose provider sent none, from the prompt's estimate and the text that was generated.
#[must_use]
pub fn estimate_usage(prompt_tokens: u64, text_bytes: usize) -> Usage {
    Usage {
        prompt_tokens,
        completion_tokens: text_bytes.div_ceil(BYTES_PER_TOKEN) as u64,
        cached_tokens: 0,
        estimated: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::PromptRole;

    #[test]
    fn four_bytes_are_a_token_rounded_up() {
        for (text, expect) in [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("ünï", 2), ("日本語", 3)] {
            assert_eq!(estimate_tokens(text), expect, "{text}");
        }
    }

    #[test]
    fn each_message_costs_its_frame_too() {
        let messages = ["", "abcd"].map(|text| PromptMessage { role: PromptRole::User, text: text.to_owned() });
        assert_eq!(estimate_prompt_tokens(&messages), 4 + 5);
        assert_eq!(estimate_message_tokens("abcd"), 5);
    }

    #[test]
    fn estimated_usage_says_so() {
        assert_eq!(
            estimate_usage(9, 5),
            Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 0, estimated: true }
        );
    }
}
