//! HTTPS: a certificate and its key from PEM files, which are read again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// A certificate in use and the files that it came from.
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: Arc<Current>,
    /// When the files were changed that were read last.
    seen: Mutex<Stamp>,
}

type Stamp = (Option<SystemTime>, Option<SystemTime>);

/// What new connections get.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its key.
    ///
    /// # Errors
    /// What is wrong with the files, or that this CPU lacks what the cryptography needs.
    pub fn load(cert: PathBuf, key: PathBuf) -> Result<Self, String> {
        let provider = Arc::new(provider()?);
        let seen = stamp(&cert, &key);
        let current = Arc::new(Current(RwLock::new(read(&cert, &key, &provider)?)));
        Ok(Self { cert, key, provider, current, seen: Mutex::new(seen) })
    }

    /// For a listener.
    ///
    /// # Errors
    /// When the cryptography has no usable version of TLS.
    pub fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let versions =
            ServerConfig::builder_with_provider(Arc::clone(&self.provider)).with_safe_default_protocol_versions()?;
        Ok(versions.with_no_client_auth().with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>))
    }

    /// Reads the files again if they have changed. Wrong ones, and a certificate that was changed before its key, change
    /// nothing but the log. Blocks.
    pub fn reload(&self) {
        let stamp = stamp(&self.cert, &self.key);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == stamp {
            return;
        }
        *seen = stamp;
        match read(&self.cert, &self.key, &self.provider) {
            Ok(new) => {
                *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!("new connections get the changed certificate {}", self.cert.display());
            }
            Err(error) => tracing::error!("the certificate stays as it was: {error}"),
        }
    }
}

fn stamp(cert: &Path, key: &Path) -> Stamp {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    (modified(cert), modified(key))
}

fn read(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let chain = chain.map_err(|error| format!("{}: {error}", cert.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate; it must be a PEM file", cert.display()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let both = CertifiedKey::from_der(chain, private, provider);
    both.map(Arc::new).map_err(|error| format!("{} and {}: {error}", cert.display(), key.display()))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn provider() -> Result<CryptoProvider, String> {
    #[cfg(target_arch = "x86_64")]
    let has_all = is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("adx")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has_all = std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
        && std::arch::is_aarch64_feature_detected!("sha2");
    if !has_all {
        return Err(
            "HTTPS needs a CPU with AES and AVX2 instructions (on ARM: AES and SHA-2); put a reverse proxy in \
                    front of this server instead"
                .into(),
        );
    }
    Ok(rustls_graviola::default_provider())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn provider() -> Result<CryptoProvider, String> {
    Err("HTTPS isn't available on this kind of CPU; put a reverse proxy in front of this server instead".into())
}
