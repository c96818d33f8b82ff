//! Commands to a Redis server: the only file that names the driver.
//!
//! A [`Client`] is one connection to one node. Every call has a deadline, and every failure comes back as the engines'
//! [`Error`] by kind, with the node's name and the server's own words, never with a password.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use mainstay_engine::{Access, Error, Kind, NodeAccess, Result};
use redis::aio::MultiplexedConnection;

use crate::link::{Door, LinkError};

/// How long a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer may take, unless a call says otherwise. A busy script holds a server for its `busy-reply-threshold`, 5 s.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// One connection to one node. Cheap to clone: clones share the connection.
#[derive(Clone)]
pub struct Client {
    connection: MultiplexedConnection,
    node: String,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// Bytes or text.
    Bytes(Vec<u8>),
    /// Several answers.
    List(Vec<Answer>),
    /// An error of the server's, within a list or a pipeline.
    Error(String),
}

impl Answer {
    /// As text; empty where there is none.
    pub fn text(&self) -> String {
        match self {
            Answer::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Answer::Int(number) => number.to_string(),
            Answer::Error(text) => text.clone(),
            Answer::Nil | Answer::List(_) => String::new(),
        }
    }

    /// As a number, also where it came as text.
    pub fn int(&self) -> Option<i64> {
        match self {
            Answer::Int(number) => Some(*number),
            Answer::Bytes(_) => self.text().parse().ok(),
            _ => None,
        }
    }

    /// As a list; empty where it is none.
    pub fn list(&self) -> &[Answer] {
        match self {
            Answer::List(list) => list,
            _ => &[],
        }
    }

    /// As the sections of `INFO`: `key:value` lines.
    pub fn info(&self) -> HashMap<String, String> {
        let text = self.text();
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
    }
}

/// Where a node is and as whom to enter.
pub fn door(access: &Access, node: &NodeAccess) -> Door {
    Door {
        host: node.host.clone(),
        port: node.port,
        user: access.user.clone(),
        password: access.password.clone(),
    }
}

impl Client {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`.
    pub async fn open(node: &str, door: &Door) -> Result<Client> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(ANSWER_DEADLINE));
        let connection = driver(door)
            .map_err(|error| refine(node, "connect to", &error))?
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| refine(node, "connect to", &error))?;
        Ok(Client { connection, node: node.to_owned() })
    }

    /// The same connection with another deadline for answers.
    #[must_use]
    pub fn patient(mut self, deadline: Duration) -> Client {
        self.connection.set_response_timeout(deadline);
        self
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// One command.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `Server`.
    pub async fn call(&self, words: &[&str]) -> Result<Answer> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.call_bytes(&words).await
    }

    /// One command whose arguments are not all text.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_bytes(&self, words: &[&[u8]]) -> Result<Answer> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        let verb = String::from_utf8_lossy(words.first().copied().unwrap_or_default()).into_owned();
        let mut connection = self.connection.clone();
        match connection.send_packed_command(&command).await {
            Ok(value) => match from_value(value) {
                Answer::Error(text) => Err(server_error(&self.node, &verb, &text)),
                answer => Ok(answer),
            },
            Err(error) => Err(refine(&self.node, &format!("run {verb} on"), &error)),
        }
    }

    /// Several commands in one go, in order; a command that the server refuses is an [`Answer::Error`] in its place.
    ///
    /// # Errors
    /// `Unreachable` when the connection broke.
    pub async fn calls(&self, commands: &[Vec<&str>]) -> Result<Vec<Answer>> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for words in commands {
            let mut command = redis::Cmd::new();
            for word in words {
                command.arg(*word);
            }
            pipeline.add_command(command);
        }
        let mut connection = self.connection.clone();
        let verb = commands.first().and_then(|words| words.first()).copied().unwrap_or_default();
        let values = connection
            .send_packed_commands(&pipeline, 0, commands.len())
            .await
            .map_err(|error| refine(&self.node, &format!("run {verb} on"), &error))?;
        Ok(values.into_iter().map(from_value).collect())
    }

    /// `INFO` of these sections.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn info(&self, sections: &[&str]) -> Result<HashMap<String, String>> {
        let mut words = vec!["INFO"];
        words.extend(sections);
        Ok(self.call(&words).await?.info())
    }
}

/// Messages of one channel. Dropping it ends the subscription.
pub struct Subscription {
    messages: redis::aio::PubSub,
    node: String,
}

impl Subscription {
    /// Subscribes, on a connection of its own.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`.
    pub async fn open(node: &str, door: &Door, channel: &str) -> Result<Subscription> {
        let mut messages = driver(door)
            .map_err(|error| refine(node, "connect to", &error))?
            .get_async_pubsub()
            .await
            .map_err(|error| refine(node, "connect to", &error))?;
        messages.subscribe(channel).await.map_err(|error| refine(node, "subscribe on", &error))?;
        Ok(Subscription { messages, node: node.to_owned() })
    }

    /// The next message.
    ///
    /// # Errors
    /// `Deadline`, `Unreachable` when the connection broke.
    pub async fn next(&mut self, deadline: Duration) -> Result<Vec<u8>> {
        match tokio::time::timeout(deadline, self.messages.on_message().next()).await {
            Err(_) => {
                Err(Error::new(Kind::Deadline, format!("wait for a message of {}: none came", self.node)))
            }
            Ok(None) => {
                Err(Error::new(Kind::Unreachable, format!("wait for a message of {}: it closed", self.node)))
            }
            Ok(Some(message)) => Ok(message.get_payload_bytes().to_vec()),
        }
    }
}

fn driver(door: &Door) -> redis::RedisResult<redis::Client> {
    use redis::IntoConnectionInfo;
    let mut settings = redis::RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(password) = &door.password {
        settings = settings.set_username(&door.user).set_password(password.expose());
    }
    let info = redis::ConnectionAddr::Tcp(door.host.clone(), door.port).into_connection_info()?;
    redis::Client::open(info.set_redis_settings(settings))
}

fn from_value(value: redis::Value) -> Answer {
    match value {
        redis::Value::Nil => Answer::Nil,
        redis::Value::Int(number) => Answer::Int(number),
        redis::Value::BulkString(bytes) => Answer::Bytes(bytes),
        redis::Value::SimpleString(text) => Answer::Bytes(text.into_bytes()),
        redis::Value::Okay => Answer::Bytes(b"OK".to_vec()),
        redis::Value::Array(list) | redis::Value::Set(list) => {
            Answer::List(list.into_iter().map(from_value).collect())
        }
        redis::Value::ServerError(error) => {
            Answer::Error(format!("{} {}", error.code(), error.details().unwrap_or_default()))
        }
        other => Answer::Error(format!("ERR unexpected answer {other:?}")),
    }
}

fn refine(node: &str, verb: &str, error: &redis::RedisError) -> Error {
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => error.to_string(),
    };
    if error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
    {
        return Error::new(Kind::Unreachable, format!("{verb} {node}: {text}"));
    }
    by_words(node, verb, &text)
}

fn server_error(node: &str, verb: &str, text: &str) -> Error {
    by_words(node, &format!("run {verb} on"), text)
}

fn by_words(node: &str, verb: &str, text: &str) -> Error {
    let word = text.split_ascii_whitespace().next().unwrap_or_default();
    let kind = match word {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "AuthenticationFailed" => Kind::Refused,
        "LOADING" | "MASTERDOWN" | "NOMASTERLINK" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" => Kind::Unreachable,
        _ if text.contains("uthentication failed") => Kind::Refused,
        _ => Kind::Server,
    };
    Error::new(kind, format!("{verb} {node}: {text}"))
}

/// A broken link in the engines' terms.
pub fn link_error(node: &str, error: LinkError) -> Error {
    let kind = match &error {
        LinkError::Broken(_) | LinkError::Closed | LinkError::Silent(_) | LinkError::NotReady(_) => {
            Kind::Unreachable
        }
        LinkError::Refused(_) => Kind::Refused,
        LinkError::Protocol(_) => Kind::Server,
        LinkError::Gone => Kind::LogGone,
    };
    let what = format!("replicate from {node}: {error}");
    match error {
        LinkError::Broken(source) => Error::new(kind, what).source(source),
        LinkError::Refused(_) => Error::new(kind, what).hint(
            "the user needs +psync +replconf +ping and, to look at the server, +info +config|get +cluster",
        ),
        _ => Error::new(kind, what),
    }
}
