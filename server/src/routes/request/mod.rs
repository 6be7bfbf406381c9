//! What the routes of all protocols share: a body taken apart, a generation begun, its report.
//!
//! | module | what lives there |
//! |---|---|
//! | [`fields`] | a body, field by field, so that none is dropped in silence |
//! | [`generation`] | how to draw and when to stop |
//! | [`embed`] | texts to vectors |
//! | [`begin`] | finds the model and starts the generation |
//! | [`prompt`] | a conversation or a text to go on from |
//! | [`report`] | what an answer came to |

pub mod begin;
pub mod embed;
pub mod fields;
pub mod generation;
pub mod prompt;
pub mod report;
