//! The load generator against a real server: it counts what was answered, and says what failed.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use shimmy_runtime::Error;
use shimmy_runtime::engine::EngineOptions;

use super::harness::{Brake, TestServer, endless, spelling, wait_for};
use crate::load::client::{Api, Target};
use crate::load::drive::{Arrivals, Extent, Load, Outcome, Shape, drive};
use crate::load::report::{Level, TokenCounts};
use crate::load::workload::{Length, Prompts};

const SHAPE: Shape = Shape {
    prompt: Length::Uniform(2, 40),
    output: Length::Uniform(1, 12),
    shared_prefix: 0,
    temperature: 0.0,
    seed: 7,
    limit: Duration::from_secs(60),
};

fn send(url: &str, api: Api, model: Option<&str>, prompts: &Prompts, arrivals: Arrivals, extent: Extent) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let target = Arc::new(Target::new(url, api, model.map(str::to_owned)).unwrap());
    let load = Load { arrivals, extent, shape: SHAPE, first_index: 0 };
    runtime.block_on(drive(&target, prompts, &load, || ())).unwrap()
}

fn url(server: &TestServer) -> String {
    format!("http://{}", server.address)
}

#[test]
fn a_closed_loop_gets_exactly_what_it_asks_for() {
    let server = TestServer::start(endless());
    let prompts = Prompts::exact(Arc::clone(&server.model().tokenizer));
    let arrivals = Arrivals::Concurrency(6);
    let outcome = send(&url(&server), Api::Completions, None, &prompts, arrivals, Extent::Requests(20));
    let level = Level::new(arrivals, &outcome);
    assert_eq!((level.answered, level.failed()), (20, 0), "{:?}", outcome.failed);
    assert_eq!((level.prompt_counts, level.output_counts), (TokenCounts::Exact, TokenCounts::Exact));
    // The server saw the same. Its numbers are published after the step that sent the last event.
    wait_for("the last step is counted", || server.stats().completed == 20);
    let wanted = |tokens: fn(&crate::load::drive::Wanted) -> usize| -> u64 {
        outcome.answered.iter().map(|(_, wanted)| tokens(wanted) as u64).sum()
    };
    let stats = server.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (wanted(|w| w.prompt), wanted(|w| w.output)));
    for (timeline, wanted) in &outcome.answered {
        assert_eq!(timeline.gaps.len() + 1, wanted.output, "each token of this vocabulary is a text");
        assert!(timeline.first <= timeline.total);
    }
}

#[test]
fn an_open_loop_waits_for_nobody() {
    let (executor, brake) = Brake::spelling("a long enough answer for each of them");
    let server = TestServer::start(executor);
    let address = url(&server);
    let sender = std::thread::spawn(move || {
        let extent = Extent::Requests(10);
        send(&address, Api::Chat, None, &Prompts::words(), Arrivals::Rate(500.0), extent)
    });
    brake.wait_reached();
    wait_for("all arrive although none is answered", || {
        let stats = server.stats();
        stats.queued >= 9 && stats.completed == 0
    });
    brake.release();
    let outcome = sender.join().unwrap();
    assert_eq!((outcome.answered.len(), outcome.failed.len()), (10, 0), "{:?}", outcome.failed);
}

#[test]
fn failures_are_counted_by_kind() {
    let one = |server: &str, model| {
        let extent = Extent::Requests(2);
        let outcome = send(server, Api::Completions, model, &Prompts::words(), Arrivals::Concurrency(1), extent);
        Level::new(Arrivals::Concurrency(1), &outcome).errors.into_iter().collect::<Vec<_>>()
    };
    let server = TestServer::start(endless());
    assert_eq!(one(&url(&server), Some("nobody")), [("status 404".to_owned(), 2)]);
    let failing = spelling("never").with_hook(|_, _| Err(Error::EngineStopped("the device fell off".into())));
    let server = TestServer::start(failing);
    // The engine has ended when the second one comes.
    assert_eq!(one(&url(&server), None), [("reported".to_owned(), 1), ("status 500".to_owned(), 1)]);
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(one(&format!("http://{unused}"), None), [("connect".to_owned(), 2)]);
}

#[test]
fn a_full_queue_is_a_failure_and_no_end() {
    let options = EngineOptions { queue: 1, max_running: 1, ..EngineOptions::default() };
    let server = TestServer::start_with(endless(), options);
    let arrivals = Arrivals::Concurrency(8);
    let outcome = send(&url(&server), Api::Completions, None, &Prompts::words(), arrivals, Extent::Requests(40));
    assert_eq!(outcome.answered.len() + outcome.failed.len(), 40);
    let level = Level::new(arrivals, &outcome);
    assert_eq!(level.errors.keys().collect::<Vec<_>>(), ["status 429"]);
    assert!(level.answered > 0);
}
