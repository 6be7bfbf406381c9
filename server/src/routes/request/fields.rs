//! A request body, taken apart field by field, so that every error names its field and no field is dropped in silence.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::generation::Range;
use crate::error::ApiError;

/// Most field names in the `x-shimmy-ignored` header, and most characters of each.
const MAX_IGNORED: (usize, usize) = (32, 64);

/// The fields of a JSON object that nobody has taken yet.
#[derive(Debug)]
pub struct Fields {
    rest: Map<String, Value>,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 when it isn't a JSON object, with the place of the mistake.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let invalid = |message: String| ApiError { code: Some("invalid_json"), ..ApiError::bad_request(message) };
        match serde_json::from_slice(body) {
            Ok(Value::Object(rest)) => Ok(Self { rest }),
            Ok(other) => Err(invalid(format!("the body must be a JSON object, not {}", kind_of(&other)))),
            Err(_) if body.iter().all(u8::is_ascii_whitespace) => Err(invalid("the body is empty".into())),
            Err(error) => Err(invalid(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// The fields of an object inside a body.
    pub fn of(rest: Map<String, Value>) -> Self {
        Self { rest }
    }

    /// Takes a field; absent and `null` are `None`.
    ///
    /// # Errors
    /// 400 that names the field when it has another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, ApiError> {
        match self.rest.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let kind = kind_of(&value);
                let taken = T::deserialize(&value).or_else(|error| T::deserialize(whole(value)).map_err(|_| error));
                taken.map(Some).map_err(|error| ApiError::param(name, format!("`{name}`: {error} (got {kind})")))
            }
        }
    }

    /// Takes a number inside a range (both ends included).
    ///
    /// # Errors
    /// 400 that names the field and the range.
    pub fn take_in(&mut self, name: &'static str, low: f32, high: f32) -> Result<Option<f32>, ApiError> {
        let value: Option<f32> = self.take(name)?;
        match value {
            Some(value) if !(low..=high).contains(&value) => {
                let bound =
                    if high == f32::INFINITY { format!("at least {low}") } else { format!("between {low} and {high}") };
                Err(ApiError::param(name, format!("`{name}` must be {bound}, got {value}")))
            }
            value => Ok(value),
        }
    }

    /// [`take_in`](Self::take_in) with a range that has a name.
    ///
    /// # Errors
    /// Those of [`take_in`](Self::take_in).
    pub fn take_range(&mut self, range: Range) -> Result<Option<f32>, ApiError> {
        self.take_in(range.name, range.min, range.max)
    }

    /// Whether nobody has taken a field yet that says something: null says nothing.
    pub fn has(&self, name: &str) -> bool {
        self.rest.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a field that would change the answer and isn't supported. `null` and the values in `harmless` ask for
    /// nothing and pass.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn refuse(&mut self, name: &'static str, harmless: &[Value], instead: &str) -> Result<(), ApiError> {
        match self.rest.shift_remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if harmless.iter().any(|harmless| same(harmless, &value)) => Ok(()),
            Some(_) => Err(ApiError::unsupported(name, instead)),
        }
    }

    /// The names of what is left, for `x-shimmy-ignored`; `None` if nothing is.
    pub fn ignored(&self) -> Option<String> {
        let names: Vec<String> = self.rest().collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Those names.
    pub fn rest(&self) -> impl Iterator<Item = String> {
        let (max_names, max_chars) = MAX_IGNORED;
        let printable = move |name: &String| -> String {
            name.chars().map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }).take(max_chars).collect()
        };
        // A client's explicit null asks for nothing, so nothing is ignored.
        let names = self.rest.iter().filter(|(_, value)| !value.is_null());
        names.map(move |(name, _)| printable(name)).take(max_names)
    }
}

/// `1.0` as `1`: JSON has one kind of number, and some clients write every one with a point.
fn whole(value: Value) -> Value {
    // Above this not every integer is a float.
    const MOST: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if !number.is_i64() && !number.is_u64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() <= MOST => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(whole).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, whole(value))).collect(),
        other => other,
    }
}

/// Equal, with `1` and `1.0` the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A JSON type's name with its article.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::parse(&serde_json::to_vec(&value).unwrap()).unwrap()
    }

    #[test]
    fn errors_name_the_field() {
        let error = fields(json!({"temperature": "hot"})).take::<f32>("temperature").unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("temperature")));
        assert!(error.message.contains("a string"), "{}", error.message);
        let error = fields(json!({"top_p": 1.5})).take_in("top_p", 0.0, 1.0).unwrap_err();
        assert_eq!(error.message, "`top_p` must be between 0 and 1, got 1.5");
    }

    #[test]
    fn a_whole_number_may_have_a_point() {
        let mut fields = fields(json!({"n": 3.0, "tokens": [1.0, 2, 3e2], "top": 1.5, "all": -0.0}));
        assert_eq!(fields.take::<usize>("n").unwrap(), Some(3));
        assert_eq!(fields.take::<Vec<u32>>("tokens").unwrap(), Some(vec![1, 2, 300]));
        assert_eq!(fields.take::<usize>("all").unwrap(), Some(0));
        assert_eq!(fields.take::<usize>("top").unwrap_err().param.as_deref(), Some("top"));
    }

    #[test]
    fn a_body_that_is_no_object_says_so() {
        for (body, expected) in [
            (&b""[..], "the body is empty"),
            (b"[1]", "must be a JSON object, not an array"),
            (b"{\"a\":", "line 1 column"),
            (b"\xff\xfe", "not valid JSON"),
        ] {
            let error = Fields::parse(body).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert!(error.message.contains(expected), "{}", error.message);
        }
    }

    #[test]
    fn refusals_let_harmless_values_pass() {
        assert!(fields(json!({"n": 1.0})).refuse("n", &[json!(1)], "one").is_ok());
        assert!(fields(json!({"n": null})).refuse("n", &[], "one").is_ok());
        assert!(fields(json!({})).refuse("n", &[], "one").is_ok());
        let error = fields(json!({"n": 2})).refuse("n", &[json!(1)], "one").unwrap_err();
        assert_eq!(error.code, Some("unsupported_parameter"));
    }

    #[test]
    fn what_is_left_is_listed_in_a_header_safe_form() {
        let mut fields = fields(json!({"user": "me", "zz\r\nX: y": 1, "nothing": null, "seed": 1}));
        fields.take::<u64>("seed").unwrap();
        assert_eq!(fields.ignored().as_deref(), Some("user, zz??X:?y"));
        assert_eq!(Fields::parse(b"{}").unwrap().ignored(), None);
    }
}
