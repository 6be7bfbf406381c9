//! Identifiers of answers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::ApiError;

/// `<prefix>-<24 hex digits>`: unique in this process by its counter and, by the keys that the standard library draws
/// from the system, most likely everywhere. It identifies; it is no secret.
pub fn unique(prefix: &str) -> String {
    static KEYS: LazyLock<(RandomState, RandomState)> = LazyLock::new(|| (RandomState::new(), RandomState::new()));
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let hash = |keys: &RandomState| {
        let mut hasher = keys.build_hasher();
        hasher.write_u64(count);
        hasher.finish()
    };
    let (a, b) = (hash(&KEYS.0), hash(&KEYS.1));
    format!("{prefix}-{a:016x}{:08x}", b & 0xffff_ffff)
}

/// `<prefix><48 hex digits>` that nobody can guess.
///
/// # Errors
/// 500 when the system has no random numbers to give.
pub fn secret(prefix: &str) -> Result<String, ApiError> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::server(format!("no random numbers: {error}")))?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{prefix}{digits}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_differ_and_have_the_shape() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| super::unique("chatcmpl")).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == "chatcmpl-".len() + 24));
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| super::secret("resp_").unwrap()).collect();
        assert!(ids.len() == 1000 && ids.iter().all(|id| id.len() == "resp_".len() + 48));
    }
}
