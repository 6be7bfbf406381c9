//! One request over one connection: its tokens' times as a client sees them.

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::wire::Response;

/// Which resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/completions`: the prompt is taken as it is.
    #[default]
    Completions,
    /// `/v1/chat/completions`: the server adds its template.
    Chat,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    host: String,
    /// Before `/v1`, without a slash at its end.
    prefix: String,
    api: Api,
    /// Named in each request.
    model: Option<String>,
}

/// An address that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {problem}; write http://HOST:PORT")]
pub struct BadUrl {
    url: String,
    problem: &'static str,
}

impl Target {
    /// From `http://HOST:PORT`, with or without `/v1`.
    ///
    /// # Errors
    /// For any other form.
    pub fn new(url: &str, api: Api, model: Option<String>) -> Result<Self, BadUrl> {
        let bad = |problem| BadUrl { url: url.to_owned(), problem };
        let rest = url.strip_prefix("http://").ok_or_else(|| bad("only plain http works"))?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') || path.contains(['?', '#']) {
            return Err(bad("this is no server's address"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { host.to_owned() } else { format!("{host}:80") };
        let path = path.trim_end_matches('/');
        let prefix = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        Ok(Self { host, prefix, api, model })
    }

    fn path(&self) -> &'static str {
        match self.api {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
        }
    }
}

/// What to ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Prompt, or the content of one message.
    pub prompt: String,
    /// Exactly so many, as `ignore_eos` is sent.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Of the sampler.
    pub seed: u64,
}

/// A request that was answered to its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline {
    /// From the moment it was due to the first text.
    pub first: Duration,
    /// Between two texts. A token without a whole character of text makes the next gap longer.
    pub gaps: Vec<Duration>,
    /// From the moment it was due to the end.
    pub total: Duration,
    /// Tokens, as the server counted them.
    pub usage: Option<Usage>,
}

/// The server's counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the answer.
    pub completion_tokens: usize,
}

/// Why a request has no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens, or too many do.
    #[error("can't connect: {0}")]
    Connect(io::Error),
    /// The server refused it.
    #[error("status {status}: {body}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// The connection broke, or what came was no response.
    #[error("the response broke off: {0}")]
    Broken(io::Error),
    /// An event wasn't what the protocol says.
    #[error("an event can't be read: {0}")]
    Event(String),
    /// The server reported an error in the stream.
    #[error("the server failed: {0}")]
    Reported(String),
    /// It took too long.
    #[error("no end after {0:?}")]
    Timeout(Duration),
}

impl Failure {
    /// For counting.
    pub fn kind(&self) -> String {
        match self {
            Self::Connect(_) => "connect".into(),
            Self::Status { status, .. } => format!("status {status}"),
            Self::Broken(_) => "broken".into(),
            Self::Event(_) => "event".into(),
            Self::Reported(_) => "reported".into(),
            Self::Timeout(_) => "timeout".into(),
        }
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

impl Chunk {
    fn has_text(&self) -> bool {
        self.choices.iter().any(|choice| {
            let text = choice.text.as_ref().or_else(|| choice.delta.as_ref()?.content.as_ref());
            text.is_some_and(|text| !text.is_empty())
        })
    }
}

/// Sends a request and reads its stream to the end. Times count from `due`, so that a late start isn't hidden.
///
/// # Errors
/// See [`Failure`].
pub async fn request(target: &Target, ask: &Ask, due: Instant, limit: Duration) -> Result<Timeline, Failure> {
    tokio::time::timeout(limit, exchange(target, ask, due)).await.unwrap_or(Err(Failure::Timeout(limit)))
}

async fn exchange(target: &Target, ask: &Ask, due: Instant) -> Result<Timeline, Failure> {
    let mut stream = TcpStream::connect(&*target.host).await.map_err(Failure::Connect)?;
    stream.set_nodelay(true).map_err(Failure::Connect)?;
    stream.write_all(&message(target, ask)).await.map_err(Failure::Broken)?;
    let mut response = Response::read(stream).await.map_err(Failure::Broken)?;
    if response.status != 200 {
        let status = response.status;
        let body = response.rest().await.map_err(Failure::Broken)?;
        return Err(Failure::Status { status, body: String::from_utf8_lossy(&body).into_owned() });
    }
    let (mut timeline, mut last) = (Timeline::default(), None);
    let mut event = Vec::new();
    loop {
        if !response.next_event(&mut event).await.map_err(Failure::Broken)? {
            return Err(Failure::Event("the stream ended without [DONE]".into()));
        }
        if event == b"[DONE]" {
            timeline.total = due.elapsed();
            return match last {
                Some(_) => Ok(timeline),
                None => Err(Failure::Event("the answer has no text".into())),
            };
        }
        let chunk: Chunk = serde_json::from_slice(&event).map_err(|error| Failure::Event(error.to_string()))?;
        if let Some(error) = &chunk.error {
            return Err(Failure::Reported(error.to_string()));
        }
        if chunk.has_text() {
            let now = Instant::now();
            match last.replace(now) {
                None => timeline.first = now - due,
                Some(last) => timeline.gaps.push(now - last),
            }
        }
        timeline.usage = chunk.usage.or(timeline.usage);
    }
}

/// The request's bytes.
fn message(target: &Target, ask: &Ask) -> Vec<u8> {
    let Ask { prompt, max_tokens, temperature, seed } = ask;
    let mut body = json!({
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "ignore_eos": true, "stream": true,
        // A seed would keep ours from using what prompts share.
        "cache_prompt": true, "stream_options": {"include_usage": true},
    });
    match target.api {
        Api::Completions => body["prompt"] = prompt.as_str().into(),
        Api::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
    }
    if let Some(model) = &target.model {
        body["model"] = model.as_str().into();
    }
    let body = body.to_string();
    let head = format!(
        "POST {}{} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        target.prefix,
        target.path(),
        target.host,
        body.len()
    );
    (head + &body).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        let parse = |url: &str| Target::new(url, Api::Chat, None).map(|target| (target.host, target.prefix));
        assert_eq!(parse("http://127.0.0.1:8080"), Ok(("127.0.0.1:8080".into(), String::new())));
        assert_eq!(parse("http://127.0.0.1:8080/v1/"), Ok(("127.0.0.1:8080".into(), String::new())));
        assert_eq!(parse("http://box/proxy/v1"), Ok(("box:80".into(), "/proxy".into())));
        assert_eq!(parse("http://[::1]:9/"), Ok(("[::1]:9".into(), String::new())));
        for url in ["https://box", "box:80", "http://", "http://a b", "http://user@box", "http://box/?q"] {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn text_is_found_in_both_protocols() {
        let has_text = |json: &str| serde_json::from_str::<Chunk>(json).unwrap().has_text();
        assert!(has_text(r#"{"choices":[{"text":"a","index":0}],"more":1}"#));
        assert!(has_text(r#"{"choices":[{"delta":{"content":"\n"}}]}"#));
        assert!(!has_text(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#));
        assert!(!has_text(r#"{"choices":[{"delta":{}}]}"#));
        assert!(!has_text(r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#));
    }
}
