//! `weir demo`: weir and the generator together, and what to try.

use std::io::Write;
use std::net::SocketAddr;

use clap::Parser;

use crate::cli::{DemoArgs, RoleArgs};
use crate::config::Config;
use crate::failure::Failure;
use crate::roles::{self, Addresses};

/// The configuration of a demo: the defaults, on loopback only, in a folder of its own.
pub(crate) fn config(args: &DemoArgs) -> Result<Config, Failure> {
    let mut config = Config { data_dir: args.data_dir.clone(), ..Config::default() };
    config.listen.udp = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.listen.http = args.http;
    config.listen.postgres = args.postgres;
    config.validate()?;
    Ok(config)
}

/// Runs until Ctrl-C, or for as long as `--duration` says.
pub(crate) async fn run(args: DemoArgs, config: Config, log: String) -> Result<(), Failure> {
    let role_args = RoleArgs {
        config: None,
        data_dir: None,
        listen: Vec::new(),
        http: None,
        postgres: None,
        log: Some(log),
    };
    let (rate, duration, data_dir) = (args.rate, args.duration, args.data_dir.display().to_string());
    let stop = async move {
        let end = async {
            match duration {
                None => std::future::pending().await,
                Some(duration) => tokio::time::sleep(duration).await,
            }
        };
        tokio::select! {
            () = crate::signals::shutdown() => {}
            () = end => {}
        }
    };
    let run = roles::run(role_args, config, stop, move |addresses| {
        if let Err(error) = greet(&addresses, rate, &data_dir) {
            tracing::warn!("cannot print: {error}");
        }
        if let Some(udp) = addresses.udp.first().copied() {
            std::thread::spawn(move || generate(udp, rate));
        }
    });
    run.await
}

/// `weir generate` is told by arguments, so it is told by arguments here too.
#[derive(Debug, Parser)]
struct Generate {
    #[command(flatten)]
    args: crate::tools::generate::GenerateArgs,
}

fn generate(udp: SocketAddr, rate: u64) {
    let (to, rate) = (udp.to_string(), rate.to_string());
    let words = ["generate", "--to", &to, "--rate", &rate, "--exporters", "8", "--extras"];
    let ended = Generate::try_parse_from(words)
        .map_err(|error| Failure::failed(error.to_string()))
        .and_then(|typed| Ok(crate::tools::generate::run(&typed.args)?));
    if let Err(failure) = ended {
        failure.report();
    }
}

fn greet(addresses: &Addresses, rate: u64, data_dir: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let (host, port) =
        addresses.postgres.map_or(("127.0.0.1".to_owned(), 15432), |a| (a.ip().to_string(), a.port()));
    let http = addresses.http.map_or("127.0.0.1:8080".to_owned(), |address| address.to_string());
    writeln!(
        out,
        "\n{rate} flows/s from 8 exporters (NetFlow v5, v9, IPFIX, sFlow); data in {data_dir}; Ctrl-C ends it.\n\n\
         who talks most, last five minutes:\n  \
         psql -h {host} -p {port} -U weir weir -c \"select src_addr, sum(est_bytes) b from flows where received_at > now() - interval '5 minutes' group by 1 order by b desc limit 10\"\n\
         bits per second by class:\n  \
         weir sql --url http://{http} \"select dscp_name(dscp) class, rate(sum(est_bytes), 60) bits_per_s from flows where received_at > now() - interval '1 minute' group by 1 order by 2 desc\"\n\
         can the numbers be trusted:\n  \
         weir sql --url http://{http} \"select exporter_addr, proto_ver, flows, loss_ratio, template_misses, sampling_rate from exporters order by 1\"\n\
         what Prometheus sees:\n  \
         curl -s http://{http}/metrics | grep weir_ledger\n"
    )?;
    out.flush()
}
