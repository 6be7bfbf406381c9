//! The real binary, from the outside: command line, server, the official OpenAI client, and every command of the README.

#[path = "../support/mod.rs"]
mod support;

mod binary;
mod commands;
mod models;
mod openai_client;
mod readme;
mod serve;
