//! What can be asked of a response that is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::background::Reader;
use super::store::{Kept, Owner};
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::begin::add_ignored;
use crate::routes::request::fields::Fields;
use crate::stream::relay;

/// Most items of a list, and how many there are if nobody asks.
const MAX_ITEMS: (usize, usize) = (100, 20);

type Id = web::Path<String>;
type Query = web::Query<HashMap<String, String>>;

fn not_found(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    let message = format!("there is no response `{id}`: it was never kept (`store`), was deleted, or is too old");
    ApiError { code: Some("response_not_found"), ..ApiError::not_found(message) }
}

fn find(state: &AppState, request: &HttpRequest, id: &str) -> Result<Arc<Kept>, ApiError> {
    state.responses.get(id, &Owner::of(request)).ok_or_else(|| not_found(id))
}

/// `GET /v1/responses/{id}`: as it is now, or its events.
///
/// # Errors
/// 404 for one that isn't kept, or is another client's; 400 when it is asked for as a stream and has no events.
pub async fn show(
    state: web::Data<AppState>,
    request: HttpRequest,
    id: Id,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    if query.keys().any(|name| name.starts_with("include") && name != "include_obfuscation") {
        return Err(ApiError::unsupported("include", "a response shows all that was asked for when it was made"));
    }
    let kept = find(&state, &request, &id)?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored(&query, &["stream", "starting_after", "include_obfuscation"]));
    let Some(next) = first_event(&query)? else {
        return Ok(response.json(&kept.object));
    };
    match &kept.live {
        Some(live) if live.has_events() => {
            let reader = Reader::new(Arc::clone(live), next);
            Ok(relay(response, state.limits.stall, reader))
        }
        _ => {
            let instead =
                "only a response that was made with `background` and `stream` has its events kept; ask without it";
            Err(ApiError::unsupported("stream", instead))
        }
    }
}

/// The number of the first event that is asked for, if any is.
fn first_event(query: &HashMap<String, String>) -> Result<Option<usize>, ApiError> {
    let streams = match query.get("stream").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::param("stream", "`stream` must be true or false")),
    };
    let Some(after) = query.get("starting_after") else { return Ok(streams.then_some(0)) };
    let after: usize = after.parse().ok().filter(|&after| after < usize::MAX).ok_or_else(|| {
        ApiError::param("starting_after", "`starting_after` must be the `sequence_number` of an event")
    })?;
    if !streams {
        return Err(ApiError::param("starting_after", "`starting_after` needs `stream=true`"));
    }
    Ok(Some(after + 1))
}

/// `DELETE /v1/responses/{id}`.
///
/// # Errors
/// As [`show`].
pub async fn delete(state: web::Data<AppState>, request: HttpRequest, id: Id) -> Result<HttpResponse, ApiError> {
    if !state.responses.remove(&id, &Owner::of(&request)) {
        return Err(not_found(&id));
    }
    Ok(HttpResponse::Ok().json(json!({"id": *id, "object": "response", "deleted": true})))
}

/// `POST /v1/responses/{id}/cancel`: ends one that runs in the background; one that has ended stays as it is.
///
/// # Errors
/// 404 as [`show`]; 400 for one that wasn't made with `background`.
pub async fn cancel(state: web::Data<AppState>, request: HttpRequest, id: Id) -> Result<HttpResponse, ApiError> {
    let kept = find(&state, &request, &id)?;
    let Some(live) = &kept.live else {
        let message = "only responses that were made with `background` can be cancelled; this one has ended";
        return Err(ApiError { code: Some("not_in_background"), ..ApiError::bad_request(message) });
    };
    live.cancel();
    live.is_over().await;
    // It may have been deleted meanwhile.
    Ok(HttpResponse::Ok().json(&find(&state, &request, &id)?.object))
}

/// `GET /v1/responses/{id}/input_items`: what the response's own request said, latest first unless `order` is `asc`.
///
/// # Errors
/// 404 as [`show`]; 400 for a query that makes no sense.
pub async fn input_items(
    state: web::Data<AppState>,
    request: HttpRequest,
    id: Id,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let kept = find(&state, &request, &id)?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored(&query, &["limit", "order", "after"]));
    Ok(response.json(page(&kept.items, &query)?))
}

/// The names in a query that say nothing here.
fn ignored(query: &HashMap<String, String>, known: &[&str]) -> Option<String> {
    let unknown: BTreeMap<&String, &String> =
        query.iter().filter(|(name, _)| !known.contains(&name.as_str())).collect();
    Fields::of(unknown.into_iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect()).ignored()
}

fn page(items: &[Value], query: &HashMap<String, String>) -> Result<Value, ApiError> {
    let (most, default) = MAX_ITEMS;
    let limit = match query.get("limit") {
        None => default,
        Some(limit) => limit
            .parse()
            .ok()
            .filter(|limit| (1..=most).contains(limit))
            .ok_or_else(|| ApiError::param("limit", format!("`limit` must be between 1 and {most}")))?,
    };
    let mut items: Vec<&Value> = items.iter().collect();
    match query.get("order").map(String::as_str) {
        Some("asc") => {}
        None | Some("desc") => items.reverse(),
        Some(_) => return Err(ApiError::param("order", "`order` must be \"asc\" or \"desc\"")),
    }
    for name in query.keys() {
        if name == "before" || name.starts_with("include") {
            let name = if name == "before" { "before" } else { "include" };
            return Err(ApiError::unsupported(name, "page with `after`, `limit` and `order`"));
        }
    }
    if let Some(after) = query.get("after") {
        let place = items.iter().position(|item| item["id"] == after.as_str());
        let place = place.ok_or_else(|| ApiError::param("after", "`after` is none of this response's items"))?;
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&&Value>| item.map(|item| item["id"].clone());
    Ok(json!({
        "object": "list", "first_id": id(items.first()), "last_id": id(items.last()), "has_more": has_more, "data": items,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_asked_for_by_the_number_before_them() {
        let first = |pairs: &[(&str, &str)]| {
            let query = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            first_event(&query).map_err(|error| error.param.unwrap())
        };
        assert_eq!((first(&[]), first(&[("stream", "false")])), (Ok(None), Ok(None)));
        assert_eq!(first(&[("stream", "true")]), Ok(Some(0)));
        assert_eq!(first(&[("stream", "true"), ("starting_after", "0")]), Ok(Some(1)));
        assert_eq!(first(&[("stream", "yes")]), Err("stream".into()));
        let most = usize::MAX.to_string();
        for wrong in ["-1", "x", "", &most] {
            assert_eq!(
                first(&[("stream", "true"), ("starting_after", wrong)]),
                Err("starting_after".into()),
                "{wrong}"
            );
        }
        assert_eq!(first(&[("starting_after", "3")]), Err("starting_after".into()));
    }

    #[test]
    fn items_come_in_pages() {
        let items: Vec<Value> = (0..25).map(|index| json!({"id": index.to_string()})).collect();
        let page = |pairs: &[(&str, &str)]| {
            let query = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            page(&items, &query)
        };
        let ids = |page: Value| {
            let data = page["data"].as_array().unwrap().len();
            (data, page["first_id"].clone(), page["last_id"].clone(), page["has_more"].clone())
        };
        assert_eq!(ids(page(&[]).unwrap()), (20, json!("24"), json!("5"), json!(true)));
        assert_eq!(ids(page(&[("after", "5")]).unwrap()), (5, json!("4"), json!("0"), json!(false)));
        assert_eq!(
            ids(page(&[("order", "asc"), ("limit", "2"), ("after", "3")]).unwrap()),
            (2, json!("4"), json!("5"), json!(true))
        );
        for (name, value) in
            [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("after", "99"), ("before", "5")]
        {
            assert_eq!(page(&[(name, value)]).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
