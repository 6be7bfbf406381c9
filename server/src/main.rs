//! The binary: everything is in `shimmy_server::cli`.

fn main() -> std::process::ExitCode {
    shimmy_server::cli::main()
}
