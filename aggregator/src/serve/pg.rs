//! The PostgreSQL wire: real `psql`, Grafana and drivers, by `pgwire`'s messages and our own handlers.
//!
//! A connection is one task and one [`Session`]. Startup: database and user `weir`; a password (SCRAM-SHA-256) where
//! one is configured. Rows are sent as they are made, in both protocols; a cancel request, a client that goes away and
//! the statement timeout stop the query. Bounds: connections, time to start, idle time, size of a message, statements
//! and portals kept. Not here: COPY, replication, TLS (the listener is on loopback unless told otherwise).

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt};
use parking_lot::Mutex;
use pgwire::api::auth::sasl::SASLAuthStartupHandler;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramAuth, gen_salted_password};
use pgwire::api::auth::{
    AuthSource, LoginInfo, Password, ServerParameterProvider, StartupHandler, finish_authentication,
    protocol_negotiation, save_startup_parameters_to_metadata,
};
use pgwire::api::cancel::CancelHandler;
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{
    ExtendedQueryHandler, SimpleQueryHandler, send_execution_response, send_partial_query_response,
    send_query_response,
};
use pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{
    ClientInfo, ClientPortalStore, DEFAULT_NAME, NoopHandler, PgWireConnectionState, PidSecretKeyGenerator,
    Type,
};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Execute, Parse, ParseComplete, TARGET_TYPE_BYTE_PORTAL,
    TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
use pgwire::messages::startup::SecretKey;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use pgwire::tokio::server::{negotiate_tls, process_error, process_message};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::values::{parameter, parameter_type, pg_fields, pg_rows};
use super::{PostgresConfig, Shared};
use crate::sql::settings::SERVER_VERSION;
use crate::sql::{Answer, CATALOG, Done, Door, ErrorKind, Prepared, QueryError, Rows, Session};

/// A client has this long from its connection to its first query.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message of a client: a statement, or the parameters of one.
const MESSAGE_BYTES: usize = 4 << 20;
/// Statements and portals that one connection may keep.
const KEPT_MAX: usize = 256;

/// Serves the PostgreSQL wire on `listener` until `shutdown`; then running queries are stopped.
pub async fn serve(
    listener: TcpListener,
    config: PostgresConfig,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        scram: config
            .password
            .as_ref()
            .map(|password| Arc::new(Credentials::new(&config.user, password.expose()))),
        config,
        shared,
        cancels: Mutex::new(HashMap::new()),
        next_pid: AtomicI32::new(1),
        connections: AtomicUsize::new(0),
    });
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // out of descriptors: wait for some to be closed
                tracing::warn!(%error, "cannot accept a PostgreSQL connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let open = server.connections.fetch_add(1, Ordering::Relaxed) + 1;
        // cancel requests come on connections of their own: they have room above the limit
        if open > server.config.connections.saturating_mul(2).saturating_add(16) {
            server.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (server, stop) = (Arc::clone(&server), shutdown.child_token());
        tasks.spawn(async move {
            server.shared.metrics.pg_connections.inc();
            if let Err(error) = server.connection(socket, peer, open, stop).await {
                tracing::debug!(%peer, %error, "PostgreSQL connection ended");
            }
            server.shared.metrics.pg_connections.dec();
            server.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
}

/// What the connections of one listener share.
struct Server {
    config: PostgresConfig,
    scram: Option<Arc<Credentials>>,
    shared: Arc<Shared>,
    /// Cancel keys, each with its connection's running query.
    cancels: Mutex<HashMap<(i32, Bytes), Running>>,
    next_pid: AtomicI32,
    connections: AtomicUsize,
}

/// The token of the query that a connection runs now.
type Running = Arc<Mutex<CancellationToken>>;

impl Server {
    async fn connection(
        self: &Arc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
        open: usize,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let socket = socket.into_std()?;
        let watched = TcpStream::from_std(socket.try_clone()?)?;
        let socket = TcpStream::from_std(socket)?;
        let gone = stop.child_token();
        let connection = Arc::new(Connection {
            server: Arc::clone(self),
            parser: Arc::new(Parser { server: Arc::clone(self), session: Mutex::new(None) }),
            running: Arc::new(Mutex::new(CancellationToken::new())),
            key: Mutex::new(None),
            gone: gone.clone(),
            refused: open > self.config.connections,
            kept: Mutex::new(HashSet::new()),
        });
        let startup = Arc::new(Startup::new(Arc::clone(&connection)));
        let negotiated = tokio::time::timeout(STARTUP_TIMEOUT, negotiate_tls(socket, None)).await;
        let Ok(Some(mut socket)) = negotiated.unwrap_or_else(|_| Ok(None)) else { return Ok(()) };
        tokio::spawn(watch(watched, gone.clone()));
        let _gone = gone.clone().drop_guard();

        let started = tokio::time::Instant::now();
        loop {
            let waiting = match socket.state() {
                PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress => {
                    STARTUP_TIMEOUT.saturating_sub(started.elapsed())
                }
                _ => Duration::from_secs(self.config.idle_timeout_s),
            };
            let next = futures::future::poll_fn(|context| match socket.poll_next_unpin(context) {
                Poll::Pending if socket.read_buffer().len() > MESSAGE_BYTES => Poll::Ready(None),
                other => other,
            });
            let message = tokio::select! {
                () = gone.cancelled() => break,
                message = tokio::time::timeout(waiting, next) => message,
            };
            let Ok(Some(Ok(message))) = message else { break };
            if matches!(message, PgWireFrontendMessage::Terminate(_)) {
                break;
            }
            let extended = message.is_extended_query();
            let processed = process_message(
                message,
                &mut socket,
                Arc::clone(&startup),
                Arc::clone(&connection),
                Arc::clone(&connection),
                Arc::new(NoopHandler),
                Arc::clone(&connection),
            )
            .await;
            if let Err(error) = processed {
                process_error(&mut socket, error, extended).await?;
            }
        }
        tracing::trace!(%peer, "PostgreSQL connection closed");
        Ok(())
    }
}

/// Ends `gone` when the client closes its side: a query that makes no rows would not notice.
async fn watch(socket: TcpStream, gone: CancellationToken) {
    loop {
        tokio::select! {
            () = gone.cancelled() => return,
            ready = socket.ready(Interest::READABLE) => match ready {
                Ok(ready) if !ready.is_read_closed() => {}
                _ => return gone.cancel(),
            },
        }
        // there are messages that the connection's task has not read yet
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
}

/// One connection: its session, its running query, what it keeps.
struct Connection {
    server: Arc<Server>,
    parser: Arc<Parser>,
    running: Running,
    key: Mutex<Option<(i32, Bytes)>>,
    gone: CancellationToken,
    refused: bool,
    kept: Mutex<HashSet<(u8, String)>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(key) = self.key.lock().take() {
            self.server.cancels.lock().remove(&key);
        }
    }
}

impl Connection {
    fn session(&self) -> PgWireResult<Arc<Session>> {
        self.parser.session()
    }

    /// The token of a query that begins now.
    fn begin(&self) -> CancellationToken {
        let token = self.gone.child_token();
        *self.running.lock() = token.clone();
        token
    }

    fn keep(&self, kind: u8, name: &str) -> PgWireResult<()> {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX && !kept.contains(&(kind, name.to_owned())) {
            let message = format!("a connection keeps {KEPT_MAX} statements and portals: close some");
            return Err(failure(&QueryError::new(ErrorKind::Prepared, message)));
        }
        kept.insert((kind, name.to_owned()));
        Ok(())
    }
}

/// An error as PostgreSQL clients know them.
fn failure(error: &QueryError) -> PgWireError {
    let severity = if error.kind == ErrorKind::NotReady { "FATAL" } else { "ERROR" };
    let mut info =
        ErrorInfo::new(severity.to_owned(), error.kind.sqlstate().to_owned(), error.message.clone());
    info.severity_nonlocalized = Some(severity.to_owned());
    info.position = error.position.map(|position| position.to_string());
    PgWireError::UserError(Box::new(info))
}

fn fatal(code: &str, message: String) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message)))
}

/// What a client is told at its start.
struct Parameters;

impl ServerParameterProvider for Parameters {
    fn server_parameters<C: ClientInfo>(&self, client: &C) -> Option<HashMap<String, String>> {
        let mut parameters: HashMap<String, String> = [
            ("server_version", SERVER_VERSION),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("default_transaction_read_only", "on"),
            ("in_hot_standby", "off"),
            ("is_superuser", "off"),
            ("search_path", "public"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        for name in ["application_name", "user"] {
            if let Some(value) = client.metadata().get(name) {
                let name = if name == "user" { "session_authorization" } else { name };
                parameters.insert(name.to_owned(), value.clone());
            }
        }
        Some(parameters)
    }
}

/// The user's password, salted once: the clear one is not kept.
#[derive(Debug)]
struct Credentials {
    user: String,
    salt: Vec<u8>,
    salted: Vec<u8>,
}

impl Credentials {
    fn new(user: &str, password: &str) -> Self {
        let salt = uuid::Uuid::new_v4().into_bytes().to_vec();
        let salted = gen_salted_password(password, &salt, SCRAM_ITERATIONS);
        Credentials { user: user.to_owned(), salt, salted }
    }
}

#[async_trait]
impl AuthSource for Credentials {
    #[expect(elided_lifetimes_in_paths, reason = "as the trait is declared")]
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        if login.user() != Some(&self.user) {
            return Err(PgWireError::InvalidPassword(login.user().unwrap_or_default().to_owned()));
        }
        Ok(Password::new(Some(self.salt.clone()), self.salted.clone()))
    }
}

/// Cancel keys: random, and known to the server from the moment they are made.
struct Keys(Arc<Connection>);

impl PidSecretKeyGenerator for Keys {
    fn generate(&self, client: &dyn ClientInfo) -> (i32, SecretKey) {
        let connection = &self.0;
        let pid = connection.server.next_pid.fetch_add(1, Ordering::Relaxed);
        let random = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
        let secret = match client.protocol_version() {
            ProtocolVersion::PROTOCOL3_0 => {
                // the first and last bytes of a version 4 UUID are random
                SecretKey::I32(i32::from_be_bytes([random[0], random[1], random[14], random[15]]))
            }
            _ => SecretKey::Bytes(random.into()),
        };
        let key = (pid, secret.to_bytes());
        connection.server.cancels.lock().insert(key.clone(), Arc::clone(&connection.running));
        if let Some(old) = connection.key.lock().replace(key) {
            connection.server.cancels.lock().remove(&old);
        }
        (pid, secret)
    }
}

/// The start of a connection: who may come in, and by which proof.
struct Startup {
    connection: Arc<Connection>,
    sasl: Option<SASLAuthStartupHandler<Parameters>>,
}

impl Startup {
    fn new(connection: Arc<Connection>) -> Self {
        let sasl = connection.server.scram.as_ref().map(|credentials| {
            let scram = ScramAuth::new(Arc::clone(credentials) as Arc<dyn AuthSource>);
            SASLAuthStartupHandler::new(Arc::new(Parameters))
                .with_scram(scram)
                .with_pid_secret_key_generator(Arc::new(Keys(Arc::clone(&connection))))
        });
        Startup { connection, sasl }
    }

    /// Whether a client with these parameters may come in at all.
    fn admit(&self, parameters: &std::collections::BTreeMap<String, String>) -> PgWireResult<()> {
        let config = &self.connection.server.config;
        if self.connection.refused {
            let message = format!("too many connections: the limit is {}", config.connections);
            return Err(fatal("53300", message));
        }
        let user = parameters.get("user").map_or("", String::as_str);
        if user != config.user {
            return Err(fatal("28000", format!("no user \"{user}\": the user is \"{}\"", config.user)));
        }
        let database = parameters.get("database").map_or(user, String::as_str);
        if database != CATALOG {
            return Err(fatal("3D000", format!("no database \"{database}\": the database is \"{CATALOG}\"")));
        }
        if parameters.contains_key("replication") {
            return Err(fatal("0A000", "replication is not offered".to_owned()));
        }
        self.connection.session().map(drop)
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let PgWireFrontendMessage::Startup(startup) = &message {
            self.admit(&startup.parameters)?;
            if self.sasl.is_none() {
                protocol_negotiation(client, startup).await?;
                save_startup_parameters_to_metadata(client, startup);
                let (pid, secret) = Keys(Arc::clone(&self.connection)).generate(client);
                client.set_pid_and_secret_key(pid, secret);
                finish_authentication(client, &Parameters).await?;
            }
        }
        match &self.sasl {
            Some(sasl) => sasl.on_startup(client, message).await,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl CancelHandler for Connection {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let key = (request.pid, request.secret_key.to_bytes());
        if let Some(running) = self.server.cancels.lock().get(&key) {
            running.lock().cancel();
        }
    }
}

fn query_response(rows: Rows, format: &Format) -> QueryResponse {
    let fields = Arc::new(pg_fields(&rows.schema(), format));
    let described = Arc::clone(&fields);
    let stream = rows.flat_map(move |batch| {
        let rows = match batch.and_then(|batch| pg_rows(&batch, &fields)) {
            Ok(rows) => rows,
            Err(error) => vec![Err(failure(&error))],
        };
        futures::stream::iter(rows)
    });
    QueryResponse::new(described, stream)
}

fn response(answer: Answer, format: &Format) -> Response {
    match answer {
        Answer::Rows(rows) => Response::Query(query_response(rows, format)),
        Answer::Done(Done::Begin) => Response::TransactionStart(Tag::new("BEGIN")),
        Answer::Done(Done::Commit) => Response::TransactionEnd(Tag::new("COMMIT")),
        Answer::Done(Done::Rollback) => Response::TransactionEnd(Tag::new("ROLLBACK")),
        Answer::Done(Done::Other(tag)) => Response::Execution(Tag::new(tag)),
        Answer::Done(Done::Nothing) => Response::EmptyQuery,
    }
}

#[async_trait]
impl SimpleQueryHandler for Connection {
    async fn do_query<C>(&self, _client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let answer = self.session()?.execute(query, &self.begin()).await.map_err(|error| failure(&error))?;
        Ok(vec![response(answer, &Format::UnifiedText)])
    }
}

/// Prepares statements: pgwire asks for it apart from the connection.
struct Parser {
    server: Arc<Server>,
    session: Mutex<Option<Arc<Session>>>,
}

impl Parser {
    fn session(&self) -> PgWireResult<Arc<Session>> {
        let mut session = self.session.lock();
        if let Some(session) = session.as_ref() {
            return Ok(Arc::clone(session));
        }
        let engine = self.server.shared.engine().map_err(|error| failure(&error))?;
        Ok(Arc::clone(session.insert(Arc::new(engine.session(Door::Postgres)))))
    }
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Arc<Prepared>;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<Self::Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        self.session()?.prepare(sql).await.map(Some).map_err(|error| failure(&error))
    }

    fn get_parameter_types(&self, statement: &Self::Statement) -> PgWireResult<Vec<Type>> {
        Ok(statement.parameters().iter().map(|wanted| parameter_type(wanted.as_ref())).collect())
    }

    fn get_result_schema(
        &self,
        statement: &Self::Statement,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        let format = format.unwrap_or(&Format::UnifiedText);
        Ok(statement.schema().map(|schema| pg_fields(&schema, format)).unwrap_or_default())
    }
}

impl Connection {
    fn parameters(
        &self,
        portal: &Portal<Arc<Prepared>>,
    ) -> PgWireResult<Vec<datafusion::common::ScalarValue>> {
        let wanted = portal.statement.statement.parameters();
        let one = |(index, bytes): (usize, &Option<Bytes>)| {
            let wanted = wanted.get(index).and_then(Option::as_ref);
            let binary = match &portal.parameter_format {
                Format::UnifiedText => false,
                Format::UnifiedBinary => true,
                Format::Individual(codes) => codes.get(index) == Some(&1),
            };
            let declared = portal.statement.parameter_types.get(index).cloned().flatten();
            let sent_as = match declared {
                Some(kind) if kind != Type::UNKNOWN => kind,
                _ => parameter_type(wanted),
            };
            parameter(bytes.as_ref(), binary, &sent_as, wanted).map_err(|error| failure(&error))
        };
        portal.parameters.iter().enumerate().map(one).collect()
    }
}

#[async_trait]
impl ExtendedQueryHandler for Connection {
    type Statement = Arc<Prepared>;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Self::QueryParser> {
        Arc::clone(&self.parser)
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        self.keep(TARGET_TYPE_BYTE_STATEMENT, &name)?;
        match StoredStatement::parse(client, &message, self.query_parser()).await? {
            Some(statement) => client.portal_store().put_statement(Arc::new(statement)),
            None => client.portal_store().put_empty_statement(&name),
        }
        client.feed(PgWireBackendMessage::ParseComplete(ParseComplete::new())).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statement = message.statement_name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = message.portal_name.as_deref().unwrap_or(DEFAULT_NAME);
        self.keep(TARGET_TYPE_BYTE_PORTAL, portal)?;
        match client.portal_store().get_statement(statement) {
            Some(Entry::Value(statement)) => {
                let portal = Portal::try_new(&message, statement)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Some(Entry::Empty) => client.portal_store().put_empty_portal(portal),
            None => return Err(PgWireError::StatementNotFound(statement.to_owned())),
        }
        client.feed(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        self.kept.lock().remove(&(message.target_type, name.to_owned()));
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => client.portal_store().rm_statement(name),
            TARGET_TYPE_BYTE_PORTAL => client.portal_store().rm_portal(name),
            _ => {}
        }
        client.feed(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
    }

    /// As pgwire's, but rows go out as they come, whatever their number.
    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        // 0 and, as libpq sends them, negative numbers ask for all rows
        let max_rows = usize::try_from(message.max_rows).unwrap_or(0);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
                return Ok(());
            }
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        };
        client.set_state(PgWireConnectionState::QueryInProgress);
        let state = portal.state();
        let mut state = state.lock().await;
        let mut rows = match std::mem::replace(&mut *state, PortalExecutionState::Finished) {
            PortalExecutionState::Initial => {
                let response =
                    ExtendedQueryHandler::do_query(self, client, portal.as_ref(), max_rows).await?;
                match self.without_rows(client, response).await? {
                    Some(rows) => rows,
                    None => {
                        client.set_state(PgWireConnectionState::ReadyForQuery);
                        return Ok(());
                    }
                }
            }
            PortalExecutionState::Suspended(rows) => rows,
            PortalExecutionState::Finished => QueryResponse::new(Arc::default(), futures::stream::empty()),
        };
        if max_rows == 0 {
            send_query_response(client, rows, false).await?;
        } else if send_partial_query_response(client, &mut rows, max_rows).await? {
            *state = PortalExecutionState::Suspended(rows);
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        Ok(())
    }

    async fn do_query<C>(
        &self,
        _client: &mut C,
        portal: &Portal<Self::Statement>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let values = self.parameters(portal)?;
        let answer = self
            .session()?
            .execute_prepared(&portal.statement.statement, values, &self.begin())
            .await
            .map_err(|error| failure(&error))?;
        Ok(response(answer, &portal.result_column_format))
    }
}

impl Connection {
    /// Sends what is not rows; gives back what is.
    async fn without_rows<C>(&self, client: &mut C, response: Response) -> PgWireResult<Option<QueryResponse>>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match response {
            Response::Query(rows) => return Ok(Some(rows)),
            Response::TransactionStart(tag) => {
                send_execution_response(client, tag).await?;
                client.set_transaction_status(TransactionStatus::Transaction);
            }
            Response::TransactionEnd(tag) => {
                send_execution_response(client, tag).await?;
                client.set_transaction_status(TransactionStatus::Idle);
            }
            Response::Execution(tag) => send_execution_response(client, tag).await?,
            _ => client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?,
        }
        Ok(None)
    }
}
