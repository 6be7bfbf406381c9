//! `GET /openapi.json` and `GET /docs`: what can be asked, for programs and for people.

mod page;
mod schemas;
mod table;

use std::sync::LazyLock;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use serde_json::json;
use utoipa::openapi::content::{Content, ContentBuilder};
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn, PathItemBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{ResponseBuilder, ResponsesBuilder};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref, Required, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};

use self::table::{Described, Endpoint, Good, Parameter, Place};
use crate::error::Protocol;
use crate::routes::resource;

/// What any endpoint can answer with: what is wrong with the request, who asks, a wrong method, or who asks too much.
const COMMON: [u16; 5] = [400, 401, 403, 405, 431];

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(document);
// The document is made of texts: it always serialises.
static JSON: LazyLock<Bytes> = LazyLock::new(|| DOCUMENT.to_json().unwrap_or_default().into());
static PAGE: LazyLock<Bytes> = LazyLock::new(|| page::render(&DOCUMENT).into());

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/openapi.json", Method::GET, web::route().to(json))).service(resource(
        "/docs",
        Method::GET,
        web::route().to(docs),
    ));
}

async fn json() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(JSON.clone())
}

async fn docs() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((CONTENT_SECURITY_POLICY, page::POLICY))
        .body(PAGE.clone())
}

fn document() -> OpenApi {
    let (mut paths, mut schemas) = (PathsBuilder::new(), Vec::new());
    let mut items: Vec<(&str, PathItemBuilder)> = Vec::new();
    for endpoint in table::endpoints() {
        let Endpoint { request, answer, events, lines, .. } = &endpoint;
        for described in [request, answer, events, lines].into_iter().flatten() {
            schemas.push(((described.name)().into_owned(), (described.schema)()));
            (described.others)(&mut schemas);
        }
        let operation = operation(&endpoint).build();
        match items.iter_mut().find(|(path, _)| *path == endpoint.path) {
            Some((_, item)) => {
                *item = std::mem::take(item).operation(endpoint.method.clone(), operation);
            }
            None => items.push((endpoint.path, PathItemBuilder::new().operation(endpoint.method, operation))),
        }
    }
    for (path, item) in items {
        paths = paths.path(path, item.build());
    }
    for (name, schema, others) in [
        error_schema::<schemas::OpenAiError>(),
        error_schema::<schemas::AnthropicError>(),
        error_schema::<schemas::OllamaError>(),
    ] {
        schemas.push((name, schema));
        schemas.extend(others);
    }
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key")));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme("bearer", bearer)
        .security_scheme("x-api-key", header)
        .build();
    let description = "Fields that would change an answer and aren't supported are errors that name them; other unknown \
                       fields are listed in the response's `x-shimmy-ignored`. `x-event-schema` is what the data \
                       of each event of a stream looks like, `x-line-schema` each line. Keys are asked for only if the \
                       server was started with some.";
    let info = InfoBuilder::new().title("Shimmy").version(env!("CARGO_PKG_VERSION")).description(Some(description));
    let no_scopes: [&str; 0] = [];
    let security = [
        SecurityRequirement::default(),
        SecurityRequirement::new("bearer", no_scopes),
        SecurityRequirement::new("x-api-key", no_scopes),
    ];
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths.build())
        .components(Some(components))
        .security(Some(security))
        .build()
}

type Named = (String, utoipa::openapi::RefOr<utoipa::openapi::Schema>);

fn error_schema<T: ToSchema>() -> (String, utoipa::openapi::RefOr<utoipa::openapi::Schema>, Vec<Named>) {
    let mut others = Vec::new();
    T::schemas(&mut others);
    (T::name().into_owned(), <T as PartialSchema>::schema(), others)
}

fn operation(endpoint: &Endpoint) -> OperationBuilder {
    let tag = match endpoint.protocol {
        Some(Protocol::OpenAi) => "OpenAI",
        Some(Protocol::Anthropic) => "Anthropic",
        Some(Protocol::Ollama) => "Ollama",
        None => "Shimmy",
    };
    let mut operation = OperationBuilder::new().tag(tag).summary(Some(endpoint.summary));
    for name in parameters(endpoint.path) {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        operation = operation.parameter(parameter.schema(Some(String::schema())).build());
    }
    for &Parameter { place, name, description, schema } in endpoint.parameters {
        let place = match place {
            Place::Query => ParameterIn::Query,
            Place::Header => ParameterIn::Header,
        };
        let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(Required::False);
        let parameter = parameter.description(Some(description)).schema(Some(schema()));
        operation = operation.parameter(parameter.build());
    }
    if let Some(request) = &endpoint.request {
        let schema = Ref::from_schema_name((request.name)());
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let body =
            RequestBodyBuilder::new().required(Some(request.required.clone())).content("application/json", content);
        operation = operation.request_body(Some(body.build()));
    }
    operation.responses(responses(endpoint).build())
}

/// A body that is one of these.
fn content(described: &Described) -> Content {
    ContentBuilder::new().schema(Some(Ref::from_schema_name((described.name)()))).build()
}

/// A body of pieces, each of them one of these. OpenAPI 3.1 has no word for it, and what would fit its `schema` is the text of
/// the whole body.
fn pieces(described: &Described, what: &str) -> Content {
    let piece = json!({"$ref": format!("#/components/schemas/{}", (described.name)())});
    let extensions = ExtensionsBuilder::new().add(format!("x-{what}-schema"), piece);
    ContentBuilder::new().extensions(Some(extensions.build())).build()
}

fn good(endpoint: &Endpoint) -> ResponseBuilder {
    let mut good = ResponseBuilder::new().description("As asked");
    if let Good::Texts(types) = endpoint.good {
        for &media in types {
            good = good.content(media, ContentBuilder::new().schema(Some(String::schema())).build());
        }
    }
    if let Some(answer) = &endpoint.answer {
        good = good.content("application/json", content(answer));
    }
    if let Some(events) = &endpoint.events {
        good = good.content("text/event-stream", pieces(events, "event"));
    }
    if let Some(lines) = &endpoint.lines {
        good = good.content("application/x-ndjson", pieces(lines, "line"));
    }
    good
}

fn responses(endpoint: &Endpoint) -> ResponsesBuilder {
    let status = match endpoint.good {
        Good::Described | Good::Texts(_) | Good::Nothing => Some("200"),
        Good::Upgrade => Some("101"),
        Good::Refusal => None,
    };
    let error = match endpoint.protocol.unwrap_or_else(|| Protocol::of(endpoint.path)) {
        Protocol::OpenAi => schemas::OpenAiError::name(),
        Protocol::Anthropic => schemas::AnthropicError::name(),
        Protocol::Ollama => schemas::OllamaError::name(),
    };
    let mut responses = ResponsesBuilder::new();
    if let Some(status) = status {
        responses = responses.response(status, good(endpoint).build());
    }
    for status in COMMON.iter().chain(endpoint.statuses) {
        // A health check that fails says so in its own words.
        let content = match &endpoint.answer {
            Some(answer) if *status == 503 && endpoint.request.is_none() => content(answer),
            _ => ContentBuilder::new().schema(Some(Ref::from_schema_name(error.clone()))).build(),
        };
        let response = ResponseBuilder::new().description(meaning(*status)).content("application/json", content);
        responses = responses.response(status.to_string(), response.build());
    }
    responses
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is wrong; the message says where",
        401 => "No key, or one that isn't known",
        403 => "A host or an origin that isn't allowed",
        404 => "There is no such thing; the nearest names are listed",
        405 => "Another method is meant",
        408 => "The body didn't come in time",
        409 => "Another request is at work on it",
        413 => "The body is too large",
        429 => "Too much at once; Retry-After says when to come back",
        431 => "The headers are too large",
        500 => "Our fault; the log says more",
        503 => "Not now: loading, shutting down, or out of memory",
        504 => "The deadline of the request passed",
        _ => "",
    }
}

/// The names in braces of a path.
fn parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
}
