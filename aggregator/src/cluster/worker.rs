//! A node that works for another: the door, the session in which a plan of another node runs, and what it may do.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::context::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_distributed::{
    ChannelResolver, DistributedConfig, DistributedExt, Worker, WorkerChannel, WorkerPlanRewriteEvent,
    WorkerPlanRewriteEventResponse, WorkerQueryContext, grpc,
};
use http::HeaderValue;
use http::header::AUTHORIZATION;
use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};
use tower::ServiceExt;
use url::Url;

use super::{ClusterMetrics, VERSION, files};
use crate::sql::{Limit, PackedGrouping};

/// The header that says how many milliseconds a query has left.
pub(super) const LEFT: &str = "weir-left-ms";
/// A query that says nothing has so long.
const LEFT_MS: u64 = 60_000;
/// Requests at once from one other node: a query has a few for each of its stages.
const REQUESTS_MAX: usize = 512;

/// Connections to other nodes, with the secret.
#[derive(Clone)]
pub(super) struct Channels {
    inner: grpc::DefaultChannelResolver,
    authorization: HeaderValue,
}

fn authorization(secret: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {secret}"))
        .map_err(|error| DataFusionError::External(Box::new(error)))?;
    value.set_sensitive(true);
    Ok(value)
}

impl Channels {
    pub(super) fn new(secret: &str) -> Result<Channels> {
        Ok(Channels { inner: grpc::DefaultChannelResolver::default(), authorization: authorization(secret)? })
    }
}

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        let channel = self.inner.get_channel(url).await?;
        let authorization = self.authorization.clone();
        let channel = channel.map_request(move |mut request: http::Request<tonic::body::Body>| {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            request
        });
        Ok(grpc::create_worker_client(grpc::BoxCloneSyncChannel::new(channel)))
    }
}

/// The door to the other nodes, until `stop`.
pub(super) async fn serve(
    worker: Worker,
    listener: TcpListener,
    secret: String,
    metrics: Arc<ClusterMetrics>,
    stop: CancellationToken,
) {
    let opened = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = match opened {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener for other nodes cannot be used");
            return;
        }
    };
    let wanted = format!("Bearer {secret}");
    let check = move |request: Request<()>| {
        let given = request.metadata().get(AUTHORIZATION.as_str()).map(|value| value.as_bytes());
        if is_same(given.unwrap_or_default(), wanted.as_bytes()) {
            Ok(request)
        } else {
            metrics.refused.inc();
            Err(Status::unauthenticated("cluster.secret is not the same on both nodes"))
        }
    };
    let service = InterceptedService::new(worker.into_worker_server(), check);
    let served = Server::builder()
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .add_service(service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the door to other nodes is closed");
    }
}

/// Takes as long for any secret of the same length.
fn is_same(given: &[u8], wanted: &[u8]) -> bool {
    given.len() == wanted.len() && given.iter().zip(wanted).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// What runs the plans of other nodes, and our own part of those of ours.
pub(super) fn worker(base: &SessionState, channels: &Channels, metrics: Arc<ClusterMetrics>) -> Worker {
    let runtime = Arc::clone(base.runtime_env());
    let (base, channels, environment) = (base.clone(), channels.clone(), Arc::clone(&runtime));
    let session = move |context: WorkerQueryContext| {
        let (base, channels) = (base.clone(), channels.clone());
        let (environment, metrics) = (Arc::clone(&environment), Arc::clone(&metrics));
        async move { Ok(session(context, &base, channels, environment, metrics)) }
    };
    Worker::from_session_builder(session).with_runtime_env(runtime).with_version(VERSION)
}

/// A session with our functions and options, for one plan.
fn session(
    context: WorkerQueryContext,
    base: &SessionState,
    channels: Channels,
    environment: Arc<RuntimeEnv>,
    metrics: Arc<ClusterMetrics>,
) -> SessionState {
    let left = context.headers.get(LEFT).and_then(|value| value.to_str().ok()?.parse().ok());
    let limit = Limit::after(Duration::from_millis(left.unwrap_or(LEFT_MS)));
    let mut builder = context.builder;
    *builder.scalar_functions() = Some(base.scalar_functions().values().cloned().collect());
    *builder.aggregate_functions() = Some(base.aggregate_functions().values().cloned().collect());
    *builder.window_functions() = Some(base.window_functions().values().cloned().collect());
    let config = builder.config().get_or_insert_default();
    let (options, ours) = (config.options_mut(), base.config_options());
    options.execution = ours.execution.clone();
    options.sql_parser = ours.sql_parser.clone();
    let rewrite = move |event: WorkerPlanRewriteEvent<'_>| {
        let plan = only_reads(event.plan).inspect_err(|_| {
            metrics.refused.inc();
        })?;
        let plan = PackedGrouping::in_stage(with_cached_footers(plan, &environment)?)?;
        // the figures of EXPLAIN ANALYZE go by the places of the operators
        let counted = DistributedConfig::from_session_config(event.session_config)?.collect_metrics;
        let plan = if counted { plan } else { limit.guarded(plan)? };
        Ok(WorkerPlanRewriteEventResponse::new(plan))
    };
    builder
        .with_distributed_channel_resolver(channels)
        .with_distributed_worker_plan_rewrite_handler(rewrite)
        .build()
}

/// A plan that writes is refused, and one that reads anything but the store's files.
pub(super) fn only_reads(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let refuse = |what: &str| {
        Err(DataFusionError::Plan(format!(
            "{what} is not done for another node: it may read the store's files"
        )))
    };
    plan.apply(|node| {
        let name = node.name();
        if name.contains("Sink") {
            return refuse(name);
        }
        if let Some(source) = node.downcast_ref::<DataSourceExec>()
            && let Some(scan) = source.data_source().downcast_ref::<FileScanConfig>()
            && scan.object_store_url != files()
        {
            return refuse(scan.object_store_url.as_str());
        }
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    })?;
    Ok(plan)
}

/// Scans that came from elsewhere keep the ends of the files, as our own do.
fn with_cached_footers(
    plan: Arc<dyn ExecutionPlan>,
    environment: &RuntimeEnv,
) -> Result<Arc<dyn ExecutionPlan>> {
    let objects: Arc<dyn ObjectStore> = environment.object_store(files())?;
    let cache = environment.cache_manager.get_file_metadata_cache();
    let readers = Arc::new(CachedParquetFileReaderFactory::new(objects, cache));
    let cached = plan.transform_up(|node| {
        let Some(source) = node.downcast_ref::<DataSourceExec>() else { return Ok(Transformed::no(node)) };
        let Some(scan) = source.data_source().downcast_ref::<FileScanConfig>() else {
            return Ok(Transformed::no(node));
        };
        let Some(parquet) = scan.file_source().downcast_ref::<ParquetSource>() else {
            return Ok(Transformed::no(node));
        };
        let parquet = parquet.clone().with_parquet_file_reader_factory(Arc::clone(&readers) as _);
        let scan = FileScanConfigBuilder::from(scan.clone()).with_source(Arc::new(parquet)).build();
        let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan);
        Ok(Transformed::yes(plan))
    })?;
    Ok(cached.data)
}
