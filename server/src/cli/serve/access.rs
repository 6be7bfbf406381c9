//! Who may ask: keys, limits, names, pages, certificates, and the log of all requests.

use std::fs::OpenOptions;
use std::io::Write;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::access::Access;
use crate::access::keys::KeyRing;
use crate::access::origins::{Hosts, Origins};
use crate::access::quota::{Addresses, Rates};
use crate::access_log::AccessLog;
use crate::cli::failure::usage;
use crate::tls::Tls;

/// Arguments.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Who may ask")]
pub(super) struct AccessArgs {
    /// Ask for this API key; several are separated by commas. The environment keeps it out of the list of processes.
    #[arg(long, value_name = "KEY", env = "SHIMMY_API_KEY", hide_env_values = true, value_delimiter = ',')]
    api_key: Vec<String>,
    /// Ask for one of the keys in this file, which `shimmy key new` writes. It is read again when it changes.
    #[arg(long, value_name = "FILE", env = "SHIMMY_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// Most requests of a key a minute that compute something; without keys, of an address.
    #[arg(long, value_name = "N", env = "SHIMMY_REQUESTS_PER_MINUTE")]
    requests_per_minute: Option<NonZeroU32>,
    /// Most tokens of prompts and answers a minute, counted the same way.
    #[arg(long, value_name = "N", env = "SHIMMY_TOKENS_PER_MINUTE")]
    tokens_per_minute: Option<NonZeroU32>,
    /// Least `priority` that a request may have; lower goes first. Keys may have a bound of their own [default: 0; any on a
    /// server without keys that only this machine can reach].
    #[arg(long, value_name = "N", env = "SHIMMY_LEAST_PRIORITY", allow_negative_numbers = true)]
    least_priority: Option<i32>,
    /// Answer to this name too, such as box.lan or *.example.com. A server that only this machine can reach answers to this
    /// machine's names, others to all names if none is given; `*` is all.
    #[arg(long, value_name = "NAME", env = "SHIMMY_ALLOW_HOST", value_delimiter = ',')]
    allow_host: Vec<String>,
    /// Let pages of this site use the server, such as https://chat.example.com; `*` is all. Pages that this machine serves
    /// always may.
    #[arg(long, visible_alias = "cors", value_name = "ORIGIN", env = "OLLAMA_ORIGINS", value_delimiter = ',')]
    allow_origin: Vec<String>,
    /// Serve HTTPS with this certificate (PEM, with those that it was signed by). It is read again when it changes.
    #[arg(long, value_name = "FILE", env = "SHIMMY_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", env = "SHIMMY_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Write a line of JSON for each request, without prompts: to a file, or to stderr (`-`).
    #[arg(long, value_name = "FILE", env = "SHIMMY_ACCESS_LOG")]
    access_log: Option<PathBuf>,
    /// Write the bodies of requests, which hold the prompts, into the access log.
    #[arg(long)]
    log_prompts: bool,
}

impl AccessArgs {
    /// The rules for a server; `is_local`: no other machine can reach it.
    ///
    /// # Errors
    /// For a wrong key file.
    pub(super) fn rules(&self, is_local: bool) -> anyhow::Result<Access> {
        if self.api_key.iter().any(|key| key.trim().is_empty()) {
            return Err(usage("--api-key: a key is empty; leave it out to ask for none"));
        }
        let rates = Rates { requests_per_minute: self.requests_per_minute, tokens_per_minute: self.tokens_per_minute };
        let keys = KeyRing::new(&self.api_key, self.api_key_file.clone(), rates)
            .map_err(|error| usage(format!("--api-key-file: {error}")))?;
        Ok(Access {
            keys,
            hosts: Hosts::new(is_local, &self.allow_host),
            origins: Origins::new(&self.allow_origin),
            addresses: Addresses::new(rates),
            least_priority: self.least_priority.or((!is_local).then_some(0)),
        })
    }

    /// The certificate, if there is to be one.
    ///
    /// # Errors
    /// For wrong files.
    pub(super) fn tls(&self) -> anyhow::Result<Option<Arc<Tls>>> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            // From the configuration file one may come without the other.
            if self.tls_cert.is_some() || self.tls_key.is_some() {
                return Err(usage("--tls-cert and --tls-key belong together"));
            }
            return Ok(None);
        };
        let tls = Tls::load(cert.clone(), key.clone()).map_err(|error| usage(format!("--tls-cert: {error}")))?;
        Ok(Some(Arc::new(tls)))
    }

    /// The log, if there is to be one.
    ///
    /// # Errors
    /// When its file can't be opened.
    pub(super) fn log(&self) -> anyhow::Result<Option<AccessLog>> {
        let Some(path) = &self.access_log else {
            return if self.log_prompts { Err(usage("--log-prompts needs --access-log")) } else { Ok(None) };
        };
        let out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(std::io::stderr())
        } else {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Box::new(file.map_err(|error| usage(format!("--access-log {}: {error}", path.display())))?)
        };
        Ok(Some(AccessLog::new(out, self.log_prompts)?))
    }
}
