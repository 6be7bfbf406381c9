//! W3C Trace Context: which trace a request belongs to (`traceparent`, `tracestate`).

use actix_web::http::header::HeaderMap;

/// Longest `tracestate` that is passed on (the specification asks for as much).
const MAX_STATE: usize = 512;

/// Whether a trace is recorded, as who began it decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampled {
    /// It is.
    Yes,
    /// It isn't: then neither are its parts.
    No,
}

/// Where a span belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// Whether it is recorded.
    pub sampled: Sampled,
    /// `tracestate` as it came.
    pub state: Option<String>,
}

impl Parent {
    /// Of a request, if it names one. One that is malformed is none, as the specification has it.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let parent = Self::parse(text("traceparent")?)?;
        let state = text("tracestate").filter(|state| !state.is_empty() && state.len() <= MAX_STATE);
        Some(Self { state: state.map(str::to_owned), ..parent })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_something = |text: &str| text.bytes().any(|byte| byte != b'0');
        // Later versions may say more after the flags; this one doesn't.
        let is_whole = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        let are_ids = is_hex(trace_id, 32) && is_something(trace_id) && is_hex(span_id, 16) && is_something(span_id);
        if !is_whole || !are_ids || !is_hex(flags, 2) {
            return None;
        }
        let sampled = if u8::from_str_radix(flags, 16).ok()? & 1 == 1 { Sampled::Yes } else { Sampled::No };
        Some(Self { trace_id: trace_id.to_owned(), span_id: span_id.to_owned(), sampled, state: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_the_specification_has_them() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let parent = Parent::parse(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!((parent.trace_id.as_str(), parent.span_id.as_str(), parent.sampled), (trace, span, Sampled::Yes));
        assert_eq!(Parent::parse(&format!("00-{trace}-{span}-00")).unwrap().sampled, Sampled::No);
        assert_eq!(Parent::parse(&format!("00-{trace}-{span}-ff")).unwrap().sampled, Sampled::Yes);
        assert!(Parent::parse(&format!("cc-{trace}-{span}-01-what-the-future-brings")).is_some());
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("0-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}-0x"),
        ] {
            assert_eq!(Parent::parse(&wrong), None, "{wrong}");
        }
    }
}
