//! Ranking by the similarity of embeddings.

use serde_json::{Value, json};
use shimmy_runtime::engine::testing::{TestExecutor, hash_hidden};

use super::client::post;
use super::harness::{MODEL, TestServer, VOCAB, tokens};

fn rank(server: &TestServer, path: &str, extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "query": "alpha"});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let reply = post(server.address, path, &request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

#[test]
fn documents_are_sorted_by_similarity() {
    let server = TestServer::start(TestExecutor::hashing(TestExecutor::LIMITS, VOCAB));
    let documents = ["beta", "alpha", "gamma", "delta", "alpha"];
    // Of the last token: a cosine that is easily told.
    let unit = |text: &str| {
        let row: Vec<f64> = hash_hidden(&tokens(text)).map(f64::from).collect();
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / length).collect::<Vec<f64>>()
    };
    let cosine = |text: &str| unit("alpha").iter().zip(unit(text)).map(|(a, b)| a * b).sum::<f64>();
    let mut expected: Vec<usize> = (0..documents.len()).collect();
    expected.sort_by(|&a, &b| cosine(documents[b]).total_cmp(&cosine(documents[a])));
    assert_eq!(expected[..2], [1, 4], "the query itself is nearest, and equals stay in order");
    for path in ["/v1/rerank", "/rerank"] {
        let ranking = rank(&server, path, json!({"documents": documents, "pooling": "last"}));
        let results = ranking["results"].as_array().unwrap();
        let order: Vec<usize> = results.iter().map(|one| one["index"].as_u64().unwrap() as usize).collect();
        assert_eq!(order, expected);
        for one in results {
            let score = one["relevance_score"].as_f64().unwrap();
            assert!((score - cosine(documents[one["index"].as_u64().unwrap() as usize])).abs() < 1e-5, "{one}");
            assert!(one.get("document").is_none());
        }
        assert_eq!(ranking["usage"]["total_tokens"], 4 + 4 * 5 + 5, "{ranking}");
        assert_eq!(ranking["model"], MODEL);
    }
    let objects = json!({"documents": [{"text": "beta"}, {"text": "alpha"}], "top_n": 1, "return_documents": true});
    let best = rank(&server, "/v1/rerank", objects);
    assert_eq!(best["results"].as_array().unwrap().len(), 1);
    assert_eq!((&best["results"][0]["index"], &best["results"][0]["document"]), (&json!(1), &json!({"text": "alpha"})));
}

#[test]
fn mistakes_name_the_document() {
    let server = TestServer::start(TestExecutor::hashing(TestExecutor::LIMITS, VOCAB));
    let long = "x".repeat(server.model().engine.context_tokens() + 1);
    for (mut extra, param) in [
        (json!({"query": long, "documents": ["a"]}), "query"),
        (json!({"query": "q", "documents": ["a", long]}), "documents[1]"),
        (json!({"query": "q", "documents": ["a"], "dimensions": 2}), ""),
    ] {
        extra["model"] = MODEL.into();
        let reply = post(server.address, "/v1/rerank", &extra);
        if param.is_empty() {
            assert_eq!((reply.status, reply.header("x-shimmy-ignored")), (200, Some("dimensions")), "{}", reply.body);
            continue;
        }
        let error = &reply.json()["error"];
        assert_eq!((reply.status, error["param"].as_str()), (400, Some(param)), "{error}");
        assert_eq!(error["code"], "context_length_exceeded");
    }
}
