//! Embeddings: a text as one vector, from the hidden states after the final norm.
//!
//! A request waits, is computed in pieces beside answers and holds KV blocks as a prompt does; it ends with its last token.

use std::time::Duration;

use tokio::sync::oneshot;

use super::handle::Generation;
use super::request::{
    Class, Event, GenerateRequest, Numerics, PromptCache, SamplingParams, Speculation, Timings, Usage,
};
use crate::error::{Error, Result};
use crate::exec::OutputRows;

/// How the hidden states of a text's tokens become one vector, which is then divided by its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean. All of them are computed: the prefix cache holds none.
    #[default]
    Mean,
    /// That of the last token, which has seen all others.
    Last,
}

/// A text whose embedding is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// Token ids; not empty, and no more than the context holds.
    pub tokens: Vec<u32>,
    /// From hidden states to a vector.
    pub pooling: Pooling,
    /// Whether [`Pooling::Last`] may share computed prompts with others.
    pub prompt_cache: PromptCache,
    /// Whether the vector's rounding may depend on what else is computed.
    pub numerics: Numerics,
    /// Whose it is and how urgent.
    pub class: Class,
    /// Most time from submission to the vector.
    pub deadline: Option<Duration>,
}

impl EmbedRequest {
    /// The embedding of these tokens.
    pub fn new(tokens: Vec<u32>, pooling: Pooling) -> Self {
        Self {
            tokens,
            pooling,
            prompt_cache: PromptCache::Use,
            numerics: Numerics::Fast,
            class: Class::default(),
            deadline: None,
        }
    }

    /// The request as a prompt without an answer, and where its hidden states go.
    pub(super) fn into_prompt(self) -> (GenerateRequest, Pool, oneshot::Receiver<Vec<f32>>) {
        let Self { tokens, pooling, prompt_cache, numerics, class, deadline } = self;
        let (result, receiver) = oneshot::channel();
        let prompt_cache = match pooling {
            Pooling::Mean => PromptCache::Skip,
            Pooling::Last => prompt_cache,
        };
        // It draws nothing: a seed keeps it from asking the system for one.
        let sampling = SamplingParams { seed: Some(0), ..SamplingParams::default() };
        let speculation = Some(Speculation::Off);
        let prompt = GenerateRequest {
            sampling,
            prompt_cache,
            numerics,
            speculation,
            class,
            deadline,
            ..GenerateRequest::new(tokens)
        };
        (prompt, Pool { pooling, sum: Vec::new(), num_rows: 0, result: Some(result) }, receiver)
    }
}

/// A vector and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Of length 1; as many elements as the model's hidden states have.
    pub vector: Vec<f32>,
    /// Counts; there are no completion tokens.
    pub usage: Usage,
    /// Times; `predicted_ms` is 0.
    pub timings: Timings,
}

/// An embedding that is on its way. Dropping it cancels the request, as with a [`Generation`].
#[derive(Debug)]
pub struct PendingEmbedding {
    pub(super) events: Generation,
    pub(super) vector: oneshot::Receiver<Vec<f32>>,
}

impl PendingEmbedding {
    /// Waits for it.
    ///
    /// # Errors
    /// Those of [`Generation::collect`]; [`Error::BadEmbedding`] when the hidden states aren't finite, or all 0.
    pub async fn collect(mut self) -> Result<Embedding> {
        let last = self.events.recv().await;
        self.end(last)
    }

    /// [`collect`](Self::collect) for code that isn't async.
    ///
    /// # Errors
    /// Those of [`collect`](Self::collect).
    ///
    /// # Panics
    /// In async code, where it would block the runtime.
    pub fn collect_blocking(mut self) -> Result<Embedding> {
        let last = self.events.blocking_recv();
        self.end(last)
    }

    /// There is one event, and the vector is sent before it.
    fn end(mut self, last: Option<Event>) -> Result<Embedding> {
        match last {
            Some(Event::Done { usage, timings, .. }) => match self.vector.try_recv() {
                Ok(vector) => Ok(Embedding { vector, usage, timings }),
                Err(_) => Err(Error::EngineStopped("an embedding ended without a vector".into())),
            },
            Some(Event::Failed(error)) => Err(error),
            Some(Event::Text { .. }) | None => Err(Error::EngineStopped("an embedding was taken for an answer".into())),
        }
    }
}

/// Hidden states of one text on the engine's thread.
#[derive(Debug)]
pub(super) struct Pool {
    pooling: Pooling,
    /// Of the rows so far; empty before the first.
    sum: Vec<f64>,
    num_rows: usize,
    result: Option<oneshot::Sender<Vec<f32>>>,
}

impl Pool {
    /// Which rows of a piece it needs, and whether the text ends with it.
    pub(super) fn output(&self, of_prompt: OutputRows) -> OutputRows {
        match (self.pooling, of_prompt) {
            (Pooling::Mean, _) => OutputRows::AllHidden,
            (Pooling::Last, OutputRows::None) => OutputRows::None,
            (Pooling::Last, _) => OutputRows::LastHidden,
        }
    }

    /// A piece that begins at this position follows. One that lost its blocks begins again.
    ///
    /// # Errors
    /// [`Error::EngineStopped`] when the mean would miss tokens.
    pub(super) fn begin(&mut self, position: usize) -> Result<()> {
        if position == 0 {
            self.sum.clear();
            self.num_rows = 0;
        }
        if self.pooling == Pooling::Mean && position != self.num_rows {
            let message = format!("the mean of {} hidden states goes on at token {position}", self.num_rows);
            return Err(Error::EngineStopped(message));
        }
        Ok(())
    }

    /// Adds the hidden state of the next wanted token.
    pub(super) fn add(&mut self, row: &[f32]) {
        self.sum.resize(row.len(), 0.0);
        self.sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        self.num_rows += 1;
    }

    /// Sends the vector. The number of rows needs no division: the length becomes 1 anyway.
    ///
    /// # Errors
    /// [`Error::BadEmbedding`] when there is no direction in it.
    pub(super) fn finish(&mut self) -> Result<()> {
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(Error::BadEmbedding(format!("the sum of its hidden states has the length {length}")));
        }
        let vector = self.sum.iter().map(|x| (x / length) as f32).collect();
        // A client that has gone away is noticed before the next step.
        let _ = self.result.take().map(|result| result.send(vector));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pooling: Pooling) -> (Pool, oneshot::Receiver<Vec<f32>>) {
        let (_, pool, vector) = EmbedRequest::new(vec![1], pooling).into_prompt();
        (pool, vector)
    }

    #[test]
    fn the_vector_has_the_length_one() {
        let (mut pool, mut vector) = pool(Pooling::Mean);
        pool.begin(0).unwrap();
        pool.add(&[1.0, 1.0]);
        pool.begin(1).unwrap();
        pool.add(&[5.0, 7.0]);
        pool.finish().unwrap();
        assert_eq!(vector.try_recv().unwrap(), [0.6, 0.8]);
    }

    #[test]
    fn a_text_that_begins_again_forgets_what_it_had() {
        let (mut pool, mut vector) = pool(Pooling::Mean);
        pool.begin(0).unwrap();
        pool.add(&[100.0, -7.0]);
        pool.begin(0).unwrap();
        pool.add(&[0.0, 2.0]);
        assert!(matches!(pool.begin(3), Err(Error::EngineStopped(_))), "tokens would be missing");
        pool.finish().unwrap();
        assert_eq!(vector.try_recv().unwrap(), [0.0, 1.0]);
    }

    #[test]
    fn hidden_states_without_a_direction_are_an_error() {
        for row in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [0.0, 0.0]] {
            let (mut pool, mut vector) = pool(Pooling::Last);
            pool.begin(0).unwrap();
            pool.add(&row);
            assert!(matches!(pool.finish(), Err(Error::BadEmbedding(_))), "{row:?}");
            assert!(vector.try_recv().is_err());
        }
    }
}
