//! Where traces go.

use crate::cli::failure::usage;
use crate::otlp::endpoint::Endpoint;
use crate::otlp::exporter::Exporter;

/// Arguments, with the names that OpenTelemetry has for them in the environment.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Traces")]
pub(super) struct TraceArgs {
    /// Send a span for each request to this OpenTelemetry collector, as OTLP over HTTP in JSON: such as http://localhost:4318.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Headers for the collector: name=value,name=value. The environment keeps them out of the list of processes.
    #[arg(long, value_name = "HEADERS", env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true)]
    otlp_headers: Option<String>,
    /// How the collector is to be spoken to, in the environment of programs that can choose.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", hide = true)]
    otlp_protocol: Option<String>,
    /// What traces call this service.
    #[arg(long, value_name = "NAME", env = "OTEL_SERVICE_NAME", default_value = "shimmy")]
    otlp_service: String,
}

impl TraceArgs {
    /// Sends spans from now on, if they are wanted.
    ///
    /// # Errors
    /// For a wrong address.
    pub(super) fn exporter(&self) -> anyhow::Result<Option<Exporter>> {
        // As OpenTelemetry has it, an empty variable is none.
        let Some(url) = self.otlp_endpoint.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
        // What takes protobuf over HTTP takes JSON at the same address; gRPC has another.
        if self.otlp_protocol.as_deref() == Some("grpc") {
            let instead =
                "name the address for HTTP (its port is 4318, mostly) and set OTEL_EXPORTER_OTLP_PROTOCOL to http/json";
            return Err(usage(format!("--otlp-endpoint: traces aren't sent by gRPC; {instead}")));
        }
        let endpoint = Endpoint::parse(url, self.otlp_headers.as_deref().unwrap_or_default());
        let endpoint = endpoint.map_err(|error| usage(format!("--otlp-endpoint: {error}")))?;
        Ok(Some(Exporter::new(endpoint, &self.otlp_service)?))
    }
}
