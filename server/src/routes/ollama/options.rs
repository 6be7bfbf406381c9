//! `options` and `keep_alive` of a request.

use std::time::Duration;

use serde_json::{Value, json};
use shimmy_runtime::models::KeepAlive;

use crate::error::ApiError;
use crate::routes::request::fields::{Fields, kind_of};
use crate::routes::request::generation::{
    FREQUENCY_PENALTY, Generation, MIN_P, PRESENCE_PENALTY, REPEAT_PENALTY, TEMPERATURE, TOP_P, take_seed, take_stop,
    take_top_k,
};

/// Most stop strings.
const MAX_STOPS: usize = 16;

/// How to draw, and how much.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// How to draw.
    pub generation: Generation,
    /// Most tokens of the answer; `None`: to the end of the context.
    pub max_tokens: Option<usize>,
    /// Options without an effect, as they are named in the header.
    pub ignored: Vec<String>,
}

impl Options {
    /// Takes `options` out of a request.
    ///
    /// # Errors
    /// 400 that names the option.
    pub fn take(request: &mut Fields) -> Result<Self, ApiError> {
        let mut fields = match request.take::<Value>("options")? {
            None => return Ok(Self::default()),
            Some(Value::Object(options)) => Fields::of(options),
            Some(other) => {
                let message = format!("`options` must be an object, not {}", kind_of(&other));
                return Err(ApiError::param("options", message));
            }
        };
        Self::from_fields(&mut fields)
            .map_err(|error| ApiError { param: error.param.map(|param| format!("options.{param}")), ..error })
    }

    fn from_fields(fields: &mut Fields) -> Result<Self, ApiError> {
        let instead = "leave it out, or use temperature, top_k, top_p, min_p and the penalties";
        for (name, off) in [("typical_p", 1), ("tfs_z", 1), ("mirostat", 0)] {
            fields.refuse(name, &[json!(off)], instead)?;
        }
        // Parameters of a sampler that is off.
        for name in ["mirostat_tau", "mirostat_eta"] {
            fields.take::<Value>(name)?;
        }
        // −1 and −2 are its words for no limit and for the rest of the context: the same here.
        let max_tokens = match fields.take::<i64>("num_predict")? {
            None | Some(-2 | -1) => None,
            Some(wanted) => Some(usize::try_from(wanted).ok().filter(|&wanted| wanted > 0).ok_or_else(|| {
                let message = format!("`num_predict` must be at least 1, or -1 for no limit, got {wanted}");
                ApiError::param("num_predict", message)
            })?),
        };
        let repeat_last_n = match fields.take::<i64>("repeat_last_n")? {
            None => None,
            Some(-1) => Some(usize::MAX),
            Some(wanted) => Some(usize::try_from(wanted).map_err(|_| {
                let message = format!("`repeat_last_n` must be at least 0, or -1 for the whole context, got {wanted}");
                ApiError::param("repeat_last_n", message)
            })?),
        };
        let generation = Generation {
            temperature: fields.take_range(TEMPERATURE)?,
            top_p: fields.take_range(TOP_P)?,
            top_k: take_top_k(fields)?,
            min_p: fields.take_range(MIN_P)?,
            repeat_penalty: fields.take_range(REPEAT_PENALTY)?,
            repeat_last_n,
            presence_penalty: fields.take_range(PRESENCE_PENALTY)?,
            frequency_penalty: fields.take_range(FREQUENCY_PENALTY)?,
            seed: take_seed(fields)?,
            stop: take_stop(fields, "stop", MAX_STOPS)?,
            ..Generation::default()
        };
        // Where a model runs and in what pieces changes nothing of an answer; `num_ctx` neither: a text that is too long is an
        // error here and never cut.
        let ignored = fields.rest().map(|name| format!("options.{name}")).collect();
        Ok(Self { generation, max_tokens, ignored })
    }
}

/// Takes `keep_alive`: seconds, or a text such as `5m`, `1h30m`, `90s`, `-1`; negative is for ever.
///
/// # Errors
/// 400 that names the field.
pub fn take_keep_alive(fields: &mut Fields) -> Result<Option<KeepAlive>, ApiError> {
    let wrong = |value: &Value| {
        let message = format!("`keep_alive` must be seconds or a text such as \"5m\", got {value}");
        ApiError::param("keep_alive", message)
    };
    let Some(value) = fields.take::<Value>("keep_alive")? else { return Ok(None) };
    let seconds = match &value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => seconds(text),
        _ => None,
    };
    Ok(Some(keep_alive(seconds.ok_or_else(|| wrong(&value))?)))
}

/// [`take_keep_alive`] for a command line.
///
/// # Errors
/// Says what it must be.
pub fn parse_keep_alive(text: &str) -> Result<KeepAlive, String> {
    let seconds = seconds(text).ok_or("it must be seconds or a text such as 5m; negative is for ever")?;
    Ok(keep_alive(seconds))
}

/// More than a duration holds is for ever, too.
fn keep_alive(seconds: f64) -> KeepAlive {
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|_| seconds >= 0.0);
    time.map_or(KeepAlive::Forever, KeepAlive::For)
}

/// A number of seconds, or numbers with units, as Go writes durations.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[unit..];
        total += number * seconds;
    }
    (total.is_finite() && !text.is_empty()).then_some(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn durations_are_gos_or_seconds() {
        for (value, expected) in [
            (json!(90), Some(KeepAlive::For(Duration::from_secs(90)))),
            (json!("5m"), Some(KeepAlive::For(Duration::from_secs(300)))),
            (json!("1h30m"), Some(KeepAlive::For(Duration::from_secs(5400)))),
            (json!("1.5s"), Some(KeepAlive::For(Duration::from_millis(1500)))),
            (json!("0"), Some(KeepAlive::For(Duration::ZERO))),
            (json!(-1), Some(KeepAlive::Forever)),
            (json!("-1m"), Some(KeepAlive::Forever)),
            (json!(1e300), Some(KeepAlive::Forever)),
            (Value::Null, None),
        ] {
            assert_eq!(take_keep_alive(&mut fields(&json!({"keep_alive": value}))).unwrap(), expected, "{value}");
        }
        for value in [json!("soon"), json!("5 m"), json!(""), json!("m"), json!("5"), json!("nan"), json!([])] {
            let result = take_keep_alive(&mut fields(&json!({"keep_alive": value})));
            assert_eq!(result.is_ok(), value == "5", "{value}");
        }
    }

    #[test]
    fn options_arrive_and_mistakes_are_named() {
        let options = json!({"options": {
            "num_predict": 7, "temperature": 0.1, "top_k": 5, "stop": ["a"], "seed": 3, "repeat_last_n": -1,
            "num_ctx": 4096, "num_thread": 8, "mirostat": 0, "mirostat_tau": 5.0,
        }});
        let options = Options::take(&mut fields(&options)).unwrap();
        assert_eq!((options.max_tokens, options.generation.top_k), (Some(7), Some(5)));
        assert_eq!((options.generation.seed, options.generation.repeat_last_n), (Some(3), Some(usize::MAX)));
        assert_eq!(options.ignored, ["options.num_ctx", "options.num_thread"]);
        for (options, param) in [
            (json!({"options": 3}), "options"),
            (json!({"options": {"num_predict": 0}}), "options.num_predict"),
            (json!({"options": {"temperature": "hot"}}), "options.temperature"),
            (json!({"options": {"mirostat": 2}}), "options.mirostat"),
            (json!({"options": {"repeat_last_n": -2}}), "options.repeat_last_n"),
        ] {
            let error = Options::take(&mut fields(&options)).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{options}");
        }
        assert_eq!(Options::take(&mut fields(&json!({"options": {"num_predict": -1}}))).unwrap().max_tokens, None);
    }
}
