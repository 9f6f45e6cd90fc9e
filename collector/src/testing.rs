//! What several tests need: a log in memory whose moods a test sets.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::sink::{Acknowledged, Message, Sink, SinkError};

/// What a [`MemorySink`] does, and what it has.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// It takes nothing.
    pub(crate) busy: bool,
    /// It refuses messages of more rows than this.
    pub(crate) refuse_above: Option<u32>,
    /// It takes such messages in hand, and refuses them afterwards.
    pub(crate) refuse_later_above: Option<u32>,
    /// It takes messages but acknowledges none.
    pub(crate) holds_back: bool,
    pub(crate) appended: Vec<Message>,
    pub(crate) acknowledged: usize,
    refused: Acknowledged,
}

impl Memory {
    /// Refuses what it has in hand and is too large.
    fn refuse(&mut self) {
        let Some(most) = self.refuse_later_above else { return };
        let in_hand = self.appended.split_off(self.acknowledged);
        let (refused, kept): (Vec<_>, Vec<_>) =
            in_hand.into_iter().partition(|message| message.envelope.rows > most);
        self.appended.extend(kept);
        self.refused.messages += refused.len() as u64;
        self.refused.rows += refused.iter().map(|message| u64::from(message.envelope.rows)).sum::<u64>();
    }
}

/// A log in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemorySink(pub(crate) Arc<Mutex<Memory>>);

impl Sink for MemorySink {
    fn append(&mut self, message: &Message) -> Result<(), SinkError> {
        let mut memory = self.0.lock();
        if memory.refuse_above.is_some_and(|rows| message.envelope.rows > rows) {
            return Err(SinkError::Refused("too many rows".into()));
        }
        if memory.busy {
            return Err(SinkError::Busy("told so".into()));
        }
        memory.appended.push(message.clone());
        Ok(())
    }

    fn poll(&mut self, _timeout: Duration) -> Acknowledged {
        let mut memory = self.0.lock();
        if memory.holds_back {
            return Acknowledged::default();
        }
        memory.refuse();
        let all = memory.appended.len();
        let before = std::mem::replace(&mut memory.acknowledged, all);
        let messages = &memory.appended[before..];
        Acknowledged {
            messages: messages.len() as u64,
            rows: messages.iter().map(|message| u64::from(message.envelope.rows)).sum(),
            bytes: messages.iter().map(|message| message.body.len() as u64).sum(),
        }
    }

    fn flush(&mut self, timeout: Duration) -> Acknowledged {
        let acknowledged = self.poll(timeout);
        if self.in_flight() > 0 {
            std::thread::sleep(timeout);
        }
        acknowledged
    }

    fn in_flight(&self) -> u64 {
        let memory = self.0.lock();
        (memory.appended.len() - memory.acknowledged) as u64
    }

    fn refused(&mut self) -> Acknowledged {
        std::mem::take(&mut self.0.lock().refused)
    }
}
