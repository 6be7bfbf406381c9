//! `POST /v1/rerank` in the shape of Jina and Cohere. The score of a document is the cosine similarity of its embedding and
//! the query's: models made for ranking read both together and judge better.

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::embeddings::{MAX_INPUTS, Usage};
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::begin::{add_ignored, client_of};
use crate::routes::request::embed::{EmbedOptions, Input, embed};
use crate::routes::request::fields::{Fields, kind_of};
use crate::routes::{read_body, resource};

/// A checked request.
#[derive(Debug, PartialEq)]
struct RerankRequest {
    model: Option<String>,
    query: String,
    documents: Vec<String>,
    /// Of the results; all if there are fewer.
    top_n: usize,
    with_documents: bool,
    options: EmbedOptions,
    ignored: Option<String>,
}

/// A string, or an object with one.
fn text(value: Value, at: &str) -> Result<String, ApiError> {
    let wrong = |message: String| ApiError::param(at, format!("`{at}` {message}"));
    let text = match value {
        Value::String(text) => text,
        Value::Object(mut object) => match object.shift_remove("text") {
            Some(Value::String(text)) if object.is_empty() => text,
            Some(Value::String(_)) => {
                let message = "may have no fields but `text`: nothing else of a document is read";
                return Err(wrong(message.into()));
            }
            _ => return Err(wrong("must have a string `text`".into())),
        },
        other => return Err(wrong(format!("must be a string or {{\"text\": …}}, not {}", kind_of(&other)))),
    };
    if text.is_empty() { Err(wrong("is empty".into())) } else { Ok(text) }
}

impl RerankRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let missing = |name: &'static str| ApiError::param(name, format!("`{name}` is missing"));
        let query = text(fields.take::<Value>("query")?.ok_or_else(|| missing("query"))?, "query")?;
        let documents: Vec<Value> = fields.take("documents")?.ok_or_else(|| missing("documents"))?;
        if documents.is_empty() || documents.len() > MAX_INPUTS {
            let message = format!("`documents` must hold 1 to {MAX_INPUTS} texts, got {}", documents.len());
            return Err(ApiError::param("documents", message));
        }
        let document = |(index, document)| text(document, &format!("documents[{index}]"));
        let documents = documents.into_iter().enumerate().map(document).collect::<Result<_, _>>()?;
        let top_n = match fields.take::<i64>("top_n")? {
            None => usize::MAX,
            Some(wanted) => usize::try_from(wanted)
                .ok()
                .filter(|&wanted| wanted > 0)
                .ok_or_else(|| ApiError::param("top_n", format!("`top_n` must be at least 1, got {wanted}")))?,
        };
        let never_cut = "a text is never cut here; send shorter ones";
        for name in ["max_chunks_per_doc", "max_tokens_per_doc"] {
            fields.refuse(name, &[], never_cut)?;
        }
        fields.refuse("rank_fields", &[json!(["text"])], "documents have a `text` and nothing else")?;
        Ok(Self {
            model: fields.take("model")?,
            query,
            documents,
            top_n,
            with_documents: fields.take("return_documents")?.unwrap_or(false),
            options: EmbedOptions::take(&mut fields)?,
            ignored: fields.ignored(),
        })
    }
}

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    for path in ["/v1/rerank", "/rerank"] {
        cfg.service(resource(path, Method::POST, web::route().to(rerank)));
    }
}

/// Texts in the order of their nearness to a query.
#[derive(Serialize, ToSchema)]
pub(in crate::routes) struct Ranking<'a> {
    id: String,
    model: &'a str,
    results: Vec<Ranked<'a>>,
    usage: Usage,
}

/// A text and how near it is.
#[derive(Serialize, ToSchema)]
#[schema(as = RankedDocument)]
struct Ranked<'a> {
    /// In the request.
    index: usize,
    /// Of -1 to 1.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    document: Option<Document<'a>>,
}

/// With `return_documents`.
#[derive(Serialize, ToSchema)]
#[schema(as = DocumentText)]
struct Document<'a> {
    text: &'a str,
}

async fn rerank(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let RerankRequest { model, query, documents, top_n, with_documents, options, ignored } =
        RerankRequest::parse(&body)?;
    let inputs = std::iter::once(query).chain(documents.iter().cloned()).map(Input::Text).collect();
    let name = |index: usize| match index.checked_sub(1) {
        None => "query".into(),
        Some(index) => format!("documents[{index}]"),
    };
    let embedded = embed(state, client_of(&request)?, model, inputs, options, name).await?;
    let [query, vectors @ ..] = embedded.vectors.as_slice() else {
        return Err(ApiError::server("the engine gave no embedding"));
    };
    let score = |vector: &Vec<f32>| vector.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let mut scores: Vec<(usize, f32)> = vectors.iter().map(score).enumerate().collect();
    // Equal ones stay in their order.
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scores.truncate(top_n);
    let ranked = |(index, relevance_score): (usize, f32)| Ranked {
        index,
        relevance_score,
        document: with_documents.then(|| Document { text: &documents[index] }),
    };
    let ranking = Ranking {
        id: crate::ids::unique("rerank"),
        model: &embedded.model.name,
        results: scores.into_iter().map(ranked).collect(),
        usage: Usage::new(embedded.prompt_tokens),
    };
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    Ok(response.json(ranking))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<RerankRequest, ApiError> {
        RerankRequest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn documents_are_strings_or_objects() {
        let request =
            parse(&json!({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 5, "user": "me"})).unwrap();
        assert_eq!((request.documents, request.top_n), (vec!["a".to_owned(), "b".to_owned()], 5));
        assert!(!request.with_documents);
        assert_eq!(request.ignored.as_deref(), Some("user"));
    }

    #[test]
    fn mistakes_are_named() {
        let documents = json!(["a"]);
        for (value, param) in [
            (json!({"documents": documents}), "query"),
            (json!({"query": "", "documents": documents}), "query"),
            (json!({"query": 3, "documents": documents}), "query"),
            (json!({"query": "q"}), "documents"),
            (json!({"query": "q", "documents": "a"}), "documents"),
            (json!({"query": "q", "documents": []}), "documents"),
            (json!({"query": "q", "documents": vec!["a"; MAX_INPUTS + 1]}), "documents"),
            (json!({"query": "q", "documents": ["a", ""]}), "documents[1]"),
            (json!({"query": "q", "documents": ["a", {"title": "b"}]}), "documents[1]"),
            (json!({"query": "q", "documents": [{"text": "a", "title": "b"}]}), "documents[0]"),
            (json!({"query": "q", "documents": documents, "top_n": 0}), "top_n"),
            (json!({"query": "q", "documents": documents, "max_tokens_per_doc": 9}), "max_tokens_per_doc"),
            (json!({"query": "q", "documents": documents, "rank_fields": ["title"]}), "rank_fields"),
        ] {
            let error = parse(&value).expect_err(&value.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{value}");
        }
    }
}
