//! Token estimates, for the context budget and for replies whose provider sends no usage.
//!
//! A tokenizer per model would be exact and is not worth its tables: four bytes per token is close for English and on the
//! safe side (too many) for most other scripts in UTF-8, where three bytes make one character and often one token.

use super::PromptMessage;
use crate::domain::entry::Usage;

/// UTF-8 bytes counted as one token.
const BYTES_PER_TOKEN: usize = 4;
/// Role and separators that a chat template puts around each message.
const TOKENS_PER_MESSAGE: u32 = 4;

/// Tokens of a text that is one message of a prompt: its bytes divided by four, rounded up, plus four for the message
/// itself. Marked as an estimate wherever it is stored.
#[must_use]
pub fn estimate_tokens(text: &str) -> u32 {
    text_tokens(text.len()).saturating_add(TOKENS_PER_MESSAGE)
}

/// Tokens of a whole prompt.
#[must_use]
pub fn estimate_prompt_tokens(messages: &[PromptMessage]) -> u64 {
    messages.iter().map(|message| u64::from(estimate_tokens(&message.text))).sum()
}

/// Usage of a reply whose provider sent none, from the prompt's estimate and the length of the text that was generated.
#[must_use]
pub fn estimate_usage(prompt_tokens: u64, text_bytes: usize) -> Usage {
    let completion_tokens = text_tokens(text_bytes).into();
    Usage { prompt_tokens, completion_tokens, cached_tokens: 0, estimated: true }
}

/// Tokens of so many bytes of text, without a message around it.
pub(super) fn text_tokens(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::PromptRole;

    #[test]
    fn four_bytes_are_a_token_rounded_up_and_a_message_costs_four() {
        for (text, expect) in [("", 4), ("a", 5), ("abcd", 5), ("abcde", 6), ("ünï", 6), ("日本語", 7)] {
            assert_eq!(estimate_tokens(text), expect, "{text}");
        }
    }

    #[test]
    fn a_prompt_is_the_sum_of_its_messages() {
        let messages = ["", "abcd"].map(|text| PromptMessage { role: PromptRole::User, text: text.to_owned() });
        assert_eq!(estimate_prompt_tokens(&messages), 4 + 5);
    }

    #[test]
    fn estimated_usage_says_so() {
        assert_eq!(
            estimate_usage(9, 5),
            Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 0, estimated: true }
        );
    }
}
