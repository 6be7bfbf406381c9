//! What can be asked of a response that is kept.

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::store::{Kept, Owner};
use crate::app::AppState;
use crate::error::ApiError;

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

/// `GET /v1/responses/{id}`.
///
/// # Errors
/// 404 for one that isn't kept, or is another client's; 400 when it is asked for as a stream.
pub async fn show(
    state: web::Data<AppState>,
    request: HttpRequest,
    id: Id,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    if query.get("stream").is_some_and(|stream| stream != "false") {
        return Err(ApiError::unsupported("stream", "a kept response is whole; ask for it without `stream`"));
    }
    Ok(HttpResponse::Ok().json(&find(&state, &request, &id)?.object))
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

/// `POST /v1/responses/{id}/cancel`: what can be asked for is over.
///
/// # Errors
/// 404 as [`show`], else 400.
pub async fn cancel(state: web::Data<AppState>, request: HttpRequest, id: Id) -> Result<HttpResponse, ApiError> {
    find(&state, &request, &id)?;
    Err(ApiError::bad_request(
        "only responses with `background` can be cancelled, which this server doesn't have; close the connection instead",
    ))
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
    Ok(HttpResponse::Ok().json(page(&kept.items, &query)?))
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
        for (name, value) in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("after", "99")] {
            assert_eq!(page(&[(name, value)]).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
