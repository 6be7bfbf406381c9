//! Several answers to one prompt.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::handle::{Answer, Generation, Parts};
use super::request::Event;
use crate::error::{Error, Result};

/// The events of all answers to a prompt. Dropping it cancels them.
#[derive(Debug)]
pub struct GenerationGroup {
    /// `None`: its last event is out.
    members: Vec<Option<Generation>>,
    /// Asked first next time, so that no answer's events wait for those of another.
    next: usize,
}

impl GenerationGroup {
    pub(super) fn new(members: Vec<Generation>) -> Self {
        Self { members: members.into_iter().map(Some).collect(), next: 0 }
    }

    /// Answers, ended or not.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// A group has at least one answer.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The answers one by one.
    pub fn into_members(self) -> Vec<Generation> {
        self.members.into_iter().flatten().collect()
    }

    /// The next event and the number of its answer; `None` when all have ended.
    pub async fn recv(&mut self) -> Option<(usize, Event)> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let mut all_ended = true;
        for offset in 0..self.members.len() {
            let index = (self.next + offset) % self.members.len();
            let Some(generation) = &mut self.members[index] else { continue };
            match generation.poll_recv(context) {
                Poll::Ready(Some(event)) => {
                    self.next = index + 1;
                    return Poll::Ready(Some((index, event)));
                }
                Poll::Ready(None) => self.members[index] = None,
                Poll::Pending => all_ended = false,
            }
        }
        if all_ended { Poll::Ready(None) } else { Poll::Pending }
    }

    /// All whole answers.
    ///
    /// # Errors
    /// The error of the first that fails; the others are cancelled.
    pub async fn collect(mut self) -> Result<Vec<Answer>> {
        self.collect_seeing(|_, _| {}).await
    }

    /// All whole answers; `see` is shown each event and the number of its answer.
    ///
    /// # Errors
    /// The error of the first that fails; the others go on until `self` is dropped.
    pub async fn collect_seeing(&mut self, mut see: impl FnMut(usize, &Event)) -> Result<Vec<Answer>> {
        let mut parts: Vec<Parts> = self.members.iter().map(|_| Parts::default()).collect();
        let mut answers: Vec<Option<Answer>> = self.members.iter().map(|_| None).collect();
        while let Some((index, event)) = self.recv().await {
            see(index, &event);
            if let Some(answer) = parts[index].add(event) {
                answers[index] = Some(answer?);
            }
        }
        // Every generation ends with an answer or an error.
        answers.into_iter().collect::<Option<_>>().ok_or_else(|| Error::EngineStopped("an answer is missing".into()))
    }

    /// Cancels all because their reader takes nothing: counted apart from clients that went away.
    pub fn cancel_slow_reader(&mut self) {
        self.members.drain(..).flatten().for_each(Generation::cancel_slow_reader);
    }
}
