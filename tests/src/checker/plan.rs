//! What a message asks the scripted provider for. The text of a message says it, so whoever has read a message knows every
//! byte of the reply to it: the provider that gives it, and the proof that compares.

use std::time::Duration;

use chatbox_proto::v1::FinishReason;

use crate::harness::provider::{Recorded, Script};

/// How the provider ends its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Stop,
    /// At the limit of its output.
    Length,
    /// Never: it falls silent.
    Hang,
    /// The connection breaks.
    Break,
}

impl End {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Stop, "stop"), (Self::Length, "length"), (Self::Hang, "hang"), (Self::Break, "break")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(end, _)| *end == self).map_or("", |(_, name)| name)
    }

    /// How a reply ends that nothing disturbs; `None`: not by itself.
    #[must_use]
    pub fn outcome(self) -> Option<FinishReason> {
        match self {
            Self::Stop => Some(FinishReason::Stop),
            Self::Length => Some(FinishReason::Length),
            Self::Hang => None,
            Self::Break => Some(FinishReason::ProviderError),
        }
    }
}

/// A message and the reply to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Unique in the round: the id that its sender gives it.
    pub name: String,
    /// Pieces of the reply.
    pub pieces: u32,
    /// Between two of them.
    pub pause: Duration,
    /// How the provider ends it.
    pub end: End,
}

impl Plan {
    /// The text of the message.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} {} {} — grüß dich 👋", self.name, self.pieces, self.pause.as_millis(), self.end.name())
    }

    /// What a message asks for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let name = words.next()?.to_owned();
        let pieces = words.next()?.parse().ok()?;
        let pause = Duration::from_millis(words.next()?.parse().ok()?);
        let word = words.next()?;
        let end = End::ALL.iter().find(|(_, name)| *name == word)?.0;
        Some(Self { name, pieces, pause, end })
    }

    fn piece(&self, number: u32) -> String {
        // No two pieces of a round are alike, and none ends where a byte count would be a character count.
        format!("[{}·{number}ß] ", self.name)
    }

    /// The whole reply.
    #[must_use]
    pub fn whole(&self) -> String {
        (0..self.pieces).map(|number| self.piece(number)).collect()
    }

    fn script(&self) -> Script {
        let mut script = Script::stream();
        for number in 0..self.pieces {
            script = script.delta(&self.piece(number)).pause(self.pause);
        }
        match self.end {
            End::Stop => script.finish("stop").usage(7, 3).done(),
            End::Length => script.finish("length").usage(7, 3).done(),
            End::Hang => script.hang(),
            End::Break => script.truncate(),
        }
    }
}

/// The provider's answer to a request: what the newest message asks for.
#[must_use]
pub fn answer(request: &Recorded) -> Script {
    let newest = request.messages().pop().map(|(_, text)| text).unwrap_or_default();
    // What is no plan gets a reply that fits no message.
    Plan::parse(&newest).map_or_else(|| Script::reply(["not a plan: ", &newest]), |plan| plan.script())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_what_its_text_says() {
        for (end, _) in End::ALL {
            let plan = Plan { name: "a-1".to_owned(), pieces: 3, pause: Duration::from_millis(7), end };
            assert_eq!(Plan::parse(&plan.text()), Some(plan.clone()));
            assert_eq!(plan.whole(), "[a-1·0ß] [a-1·1ß] [a-1·2ß] ");
        }
        assert_eq!(Plan::parse("hello"), None);
    }
}
