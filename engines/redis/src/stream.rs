//! Splits a replication stream into commands, wherever its bytes happen to be cut.
//!
//! A replication stream is what a Redis master sends after the RDB file: commands as arrays of bulk strings, sometimes
//! as inline lines. Offsets count its bytes, so a place is a byte, and most bytes are inside a command. [`Splitter`]
//! follows the bytes with a constant amount of memory (a bulk of any size is skipped, not gathered) and knows at each
//! moment which database is selected, whether a transaction is open, and the last [`Boundary`]: the last offset at which
//! the stream may be cut so that no command and no transaction is cut with it.
//!
//! It refuses what cannot be a replication stream ([`StreamError`]); after an error it stays in error. Feeding the same
//! bytes in any division gives the same answer.

/// How many arguments of a command are looked at; the rest is only counted.
const ARGUMENTS_KEPT: usize = 4;
/// How many bytes of each such argument are kept.
const ARGUMENT_BYTES_KEPT: usize = 192;
/// The longest inline command or header line. Redis's own limit for an inline request is 64 KiB.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// The most arguments of one command. Redis's own limit is 1024 * 1024 for clients and INT_MAX for a master.
const ARGUMENTS_MAX: u64 = i32::MAX as u64;
/// The largest bulk. Redis allows `proto-max-bulk-len` to be raised; a terabyte is beyond every machine it runs on.
const BULK_BYTES_MAX: u64 = 1 << 40;
/// Where a command began that was entered in its midst.
const UNKNOWN_START: u64 = u64::MAX;

/// The bytes cannot be a replication stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a replication stream at offset {offset}: {reason}")]
pub struct StreamError {
    /// The offset at which the bytes stopped making sense.
    pub offset: u64,
    /// What was wrong.
    pub reason: &'static str,
}

/// What must be known to read a stream from its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// The bytes before it are whole commands: a replica that has processed exactly them has this offset.
    pub offset: u64,
    /// The database selected there; none when the stream has not said yet.
    pub db: Option<u32>,
    /// A MULTI is open there, so that a cut would leave a transaction half applied.
    pub in_multi: bool,
}

/// What must be known to read a stream from the midst of a command's argument: a value may be larger than what is gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside {
    /// The offset, and what was selected and open before the command.
    pub at: Boundary,
    /// How many bytes of the argument are still to come, without its line end.
    pub bulk_left: u64,
    /// How many arguments are, this one among them.
    pub arguments_left: u64,
}

/// One whole command, as far as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    /// The offset before its first byte; `u64::MAX` if the stream was entered in its midst.
    pub start: u64,
    /// The offset after its last byte.
    pub end: u64,
    /// How many arguments it had, its name among them.
    pub argument_count: u64,
    /// The first arguments, each cut at `ARGUMENT_BYTES_KEPT` bytes.
    pub arguments: &'a [Vec<u8>],
}

impl Command<'_> {
    /// The command's name, in whatever case it was sent.
    pub fn name(&self) -> &[u8] {
        self.arguments.first().map_or(&[], Vec::as_slice)
    }

    /// Whether this is the named command (given in upper case).
    pub fn is(&self, name: &str) -> bool {
        self.name().eq_ignore_ascii_case(name.as_bytes())
    }

    /// A keepalive: it changes nothing, and a master that takes no writes still sends it.
    pub fn is_heartbeat(&self) -> bool {
        self.argument_count == 0 || self.is("PING") || self.is_getack()
    }

    /// `REPLCONF GETACK *`: the master wants to know our offset now.
    pub fn is_getack(&self) -> bool {
        self.is("REPLCONF")
            && self.arguments.get(1).is_some_and(|argument| argument.eq_ignore_ascii_case(b"GETACK"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Between two commands.
    Idle,
    /// In the `*N` line or in an inline command.
    Line,
    /// In the `$N` line of the next bulk.
    BulkLine,
    /// In a bulk, with so many of its bytes still to come.
    Bulk { left: u64 },
    /// In the line end that follows a bulk; one more byte is known when `seen_cr`.
    BulkEnd { seen_cr: bool },
    /// Broken for good.
    Failed(StreamError),
}

/// The incremental splitter. See the module's head.
#[derive(Debug, Clone)]
pub struct Splitter {
    state: State,
    offset: u64,
    db: Option<u32>,
    in_multi: bool,
    clean: Option<Boundary>,
    command_start: u64,
    line: Vec<u8>,
    argument_count: u64,
    arguments_left: u64,
    /// Buffers that are used again for each command; the first `kept` of them are this one's.
    arguments: Vec<Vec<u8>>,
    kept: usize,
    current_kept: bool,
}

impl Splitter {
    /// A splitter that stands at a boundary between two commands.
    pub fn new(at: Boundary) -> Splitter {
        Splitter {
            state: State::Idle,
            offset: at.offset,
            db: at.db,
            in_multi: at.in_multi,
            clean: (!at.in_multi).then_some(at),
            command_start: at.offset,
            line: Vec::new(),
            argument_count: 0,
            arguments_left: 0,
            arguments: Vec::new(),
            kept: 0,
            current_kept: false,
        }
    }

    /// A splitter that stands in the midst of a command's argument. The command's name and its start are not known: it is none of
    /// those that change the state.
    pub fn within(inside: Inside) -> Splitter {
        Splitter {
            state: State::Bulk { left: inside.bulk_left },
            clean: None,
            command_start: UNKNOWN_START,
            argument_count: inside.arguments_left,
            arguments_left: inside.arguments_left,
            // What follows must not be taken for the name.
            arguments: vec![Vec::new(), Vec::new()],
            kept: 2,
            ..Splitter::new(inside.at)
        }
    }

    /// What must be known to go on from here, where that is the midst of an argument of a command that changes no state.
    pub fn inside(&self) -> Option<Inside> {
        let State::Bulk { left } = self.state else { return None };
        let name = self.arguments.first().filter(|_| self.kept > 1)?;
        let changes = ["SELECT", "MULTI", "EXEC", "DISCARD"];
        let at = Boundary { offset: self.offset, db: self.db, in_multi: self.in_multi };
        (!changes.iter().any(|change| name.eq_ignore_ascii_case(change.as_bytes()))).then_some(Inside {
            at,
            bulk_left: left,
            arguments_left: self.arguments_left,
        })
    }

    /// The offset after the last byte fed.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The last offset at which the stream may be cut: outside every command and every transaction. None when the stream was
    /// entered inside a transaction that has not ended yet.
    pub fn clean(&self) -> Option<Boundary> {
        self.clean
    }

    /// The last boundary between two commands, inside a transaction or not; at `u64::MAX` before the first one of a stream that was
    /// entered inside a command.
    pub fn boundary(&self) -> Boundary {
        Boundary { offset: self.command_start, db: self.db, in_multi: self.in_multi }
    }

    /// The name of the command that has not ended, as soon as it is known.
    pub fn unfinished(&self) -> Option<&[u8]> {
        // A name is whole once another argument, or its own line end, has begun.
        let whole = self.kept > 1 || matches!(self.state, State::BulkEnd { .. } | State::BulkLine);
        self.arguments[..self.kept].first().filter(|_| whole && self.state != State::Idle).map(Vec::as_slice)
    }

    /// Whether the last byte fed ended a command.
    pub fn at_boundary(&self) -> bool {
        self.state == State::Idle
    }

    /// Feeds bytes; `on_command` sees every command that they end.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_command: impl FnMut(&Command<'_>),
    ) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let used = match self.step(bytes, &mut on_command) {
                Ok(used) => used,
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// Takes in at least one byte and says how many.
    fn step(
        &mut self,
        bytes: &[u8],
        on_command: &mut impl FnMut(&Command<'_>),
    ) -> Result<usize, StreamError> {
        match self.state {
            State::Failed(ref error) => Err(error.clone()),
            State::Idle => {
                self.line.clear();
                self.kept = 0;
                self.argument_count = 0;
                self.state = State::Line;
                Ok(0)
            }
            State::Line => {
                let (used, ended) = self.take_line(bytes)?;
                if ended {
                    self.end_of_line(on_command)?;
                }
                Ok(used)
            }
            State::BulkLine => {
                let (used, ended) = self.take_line(bytes)?;
                if ended {
                    self.begin_bulk()?;
                }
                Ok(used)
            }
            State::Bulk { left } => {
                let used = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.keep(&bytes[..used]);
                self.offset += used as u64;
                let left = left - used as u64;
                self.state = if left == 0 { State::BulkEnd { seen_cr: false } } else { State::Bulk { left } };
                Ok(used)
            }
            State::BulkEnd { seen_cr } => {
                let expected = if seen_cr { b'\n' } else { b'\r' };
                if bytes[0] != expected {
                    return Err(self.error("a bulk string without its line end"));
                }
                self.offset += 1;
                if seen_cr {
                    self.arguments_left -= 1;
                    self.next_argument(on_command)?;
                } else {
                    self.state = State::BulkEnd { seen_cr: true };
                }
                Ok(1)
            }
        }
    }

    /// Gathers a line up to and without its line feed.
    fn take_line(&mut self, bytes: &[u8]) -> Result<(usize, bool), StreamError> {
        let (used, ended) = match memchr::memchr(b'\n', bytes) {
            Some(at) => (at + 1, true),
            None => (bytes.len(), false),
        };
        let text = if ended { &bytes[..used - 1] } else { bytes };
        // Measured before it is gathered, so that the answer does not depend on how the bytes were divided.
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        if text.len() > room {
            self.offset += room as u64;
            return Err(self.error("a line longer than 64 KiB"));
        }
        self.line.extend_from_slice(text);
        self.offset += used as u64;
        if ended && self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok((used, ended))
    }

    /// A line between two commands ended: the head of an array, or an inline command.
    fn end_of_line(&mut self, on_command: &mut impl FnMut(&Command<'_>)) -> Result<(), StreamError> {
        if let Some(count) = self.line.strip_prefix(b"*") {
            let Some(count) = parse_signed(count) else {
                return Err(self.error("an array without a length"));
            };
            // An empty or null array is no command; Redis passes over it.
            let count = u64::try_from(count).unwrap_or(0);
            if count > ARGUMENTS_MAX {
                return Err(self.error("an array longer than Redis allows"));
            }
            self.argument_count = count;
            self.arguments_left = count;
            return self.next_argument(on_command);
        }
        if self.line.first() == Some(&b'$') {
            return Err(self.error("a bulk string outside an array"));
        }
        for word in self.line.split(u8::is_ascii_whitespace) {
            if word.is_empty() {
                continue;
            }
            self.argument_count += 1;
            if self.kept < ARGUMENTS_KEPT {
                let cut = word.len().min(ARGUMENT_BYTES_KEPT);
                let argument = next_buffer(&mut self.arguments, &mut self.kept);
                argument.extend_from_slice(&word[..cut]);
            }
        }
        self.arguments_left = 0;
        self.next_argument(on_command)
    }

    fn begin_bulk(&mut self) -> Result<(), StreamError> {
        let length =
            self.line.strip_prefix(b"$").and_then(parse_signed).and_then(|length| u64::try_from(length).ok());
        match length {
            None => Err(self.error("an array whose element is no bulk string")),
            Some(length) if length > BULK_BYTES_MAX => {
                Err(self.error("a bulk string larger than a terabyte"))
            }
            Some(length) => {
                self.current_kept = self.kept < ARGUMENTS_KEPT;
                if self.current_kept {
                    next_buffer(&mut self.arguments, &mut self.kept);
                }
                self.state = if length == 0 {
                    State::BulkEnd { seen_cr: false }
                } else {
                    State::Bulk { left: length }
                };
                Ok(())
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !self.current_kept {
            return;
        }
        if let Some(argument) = self.arguments[..self.kept].last_mut() {
            let room = ARGUMENT_BYTES_KEPT - argument.len();
            argument.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }

    /// Goes on to the next argument, or ends the command when there is none.
    fn next_argument(&mut self, on_command: &mut impl FnMut(&Command<'_>)) -> Result<(), StreamError> {
        if self.arguments_left > 0 {
            self.line.clear();
            self.state = State::BulkLine;
            return Ok(());
        }
        let command = Command {
            start: self.command_start,
            end: self.offset,
            argument_count: self.argument_count,
            arguments: &self.arguments[..self.kept],
        };
        if command.is("SELECT") {
            let db = command
                .arguments
                .get(1)
                .and_then(|argument| parse_signed(argument))
                .and_then(|db| u32::try_from(db).ok());
            let Some(db) = db else {
                return Err(self.error("SELECT without a database"));
            };
            self.db = Some(db);
        } else if command.is("MULTI") {
            self.in_multi = true;
        } else if command.is("EXEC") || command.is("DISCARD") {
            self.in_multi = false;
        }
        on_command(&command);
        self.command_start = self.offset;
        self.state = State::Idle;
        if !self.in_multi {
            self.clean = Some(self.boundary());
        }
        Ok(())
    }

    fn error(&self, reason: &'static str) -> StreamError {
        StreamError { offset: self.offset, reason }
    }
}

/// An empty buffer behind those that are in use.
fn next_buffer<'a>(buffers: &'a mut Vec<Vec<u8>>, used: &mut usize) -> &'a mut Vec<u8> {
    if buffers.len() == *used {
        buffers.push(Vec::new());
    }
    let buffer = &mut buffers[*used];
    buffer.clear();
    *used += 1;
    buffer
}

/// A decimal number with an optional sign and nothing else, as Redis's `string2ll` takes it.
fn parse_signed(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Boundary = Boundary { offset: 100, db: None, in_multi: false };

    fn command(arguments: &[&[u8]]) -> Vec<u8> {
        let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            out.extend_from_slice(argument);
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    /// Start, end and arguments of a command.
    type Seen = (u64, u64, Vec<Vec<u8>>);

    /// Everything that a splitter says about these pieces.
    fn run(pieces: &[&[u8]]) -> (Vec<Seen>, Result<(), StreamError>, String) {
        let mut splitter = Splitter::new(START);
        let mut commands = Vec::new();
        let mut result = Ok(());
        for piece in pieces {
            result = splitter.feed(piece, |command| {
                commands.push((command.start, command.end, command.arguments.to_vec()));
            });
            if result.is_err() {
                break;
            }
        }
        let state = format!("{:?} {:?}", splitter.clean(), splitter.boundary());
        (commands, result, state)
    }

    #[test]
    fn a_transaction_is_not_cut() {
        let mut bytes = command(&[b"SELECT", b"3"]);
        bytes.extend(command(&[b"SET", b"a", b"\r\n*1\r\n"]));
        let clean = START.offset + bytes.len() as u64;
        bytes.extend(command(&[b"multi"]));
        bytes.extend(command(&[b"SET", b"b", b"2"]));
        let mut splitter = Splitter::new(START);
        splitter.feed(&bytes, |_| {}).unwrap();
        assert_eq!(splitter.clean(), Some(Boundary { offset: clean, db: Some(3), in_multi: false }));
        assert!(splitter.boundary().in_multi);
        splitter.feed(&command(&[b"EXEC"]), |_| {}).unwrap();
        assert_eq!(splitter.clean().unwrap().offset, splitter.offset());
    }

    #[test]
    fn entered_inside_a_transaction_there_is_no_clean_boundary_before_exec() {
        let mut splitter = Splitter::new(Boundary { in_multi: true, ..START });
        splitter.feed(&command(&[b"SET", b"b", b"2"]), |_| {}).unwrap();
        assert_eq!(splitter.clean(), None);
        splitter.feed(&command(&[b"EXEC"]), |_| {}).unwrap();
        assert_eq!(splitter.clean().unwrap().offset, splitter.offset());
    }

    #[test]
    fn a_stream_is_entered_in_the_midst_of_an_argument() {
        let mut bytes = command(&[b"SELECT", b"3"]);
        bytes.extend(command(&[b"MULTI"]));
        bytes.extend(command(&[b"MSET", b"key", &[b'x'; 500], b"MULTI", b"EXEC"]));
        bytes.extend(command(&[b"EXEC"]));
        bytes.extend(command(&[b"SET", b"a", b"EXEC"]));
        let mut splitter = Splitter::new(START);
        let mut entered = 0;
        for (n, byte) in bytes.iter().enumerate() {
            if let Some(inside) = splitter.inside() {
                entered += 1;
                let mut other = Splitter::within(inside);
                assert_eq!((other.offset(), other.inside()), (splitter.offset(), Some(inside)));
                assert_eq!((other.clean(), other.boundary().offset), (None, UNKNOWN_START));
                let mut names = Vec::new();
                other.feed(&bytes[n..], |command| names.push(command.name().to_vec())).unwrap();
                let all = [&b""[..], b"EXEC", b"SET"];
                let of = if inside.at.in_multi { &all[..] } else { &all[..1] };
                assert_eq!(names, of);
                let end = START.offset + bytes.len() as u64;
                assert_eq!(other.clean(), Some(Boundary { offset: end, db: Some(3), in_multi: false }));
            }
            splitter.feed(std::slice::from_ref(byte), |_| {}).unwrap();
        }
        assert!(entered > 500, "{entered}");
    }

    #[test]
    fn heartbeats_are_told_apart() {
        let mut heartbeats = Vec::new();
        let mut splitter = Splitter::new(START);
        let mut bytes = command(&[b"PING"]);
        bytes.extend(command(&[b"REPLCONF", b"GETACK", b"*"]));
        bytes.extend(b"\n");
        bytes.extend(b"PING\r\n");
        bytes.extend(b"*0\r\n");
        bytes.extend(command(&[b"PINGX"]));
        splitter.feed(&bytes, |command| heartbeats.push(command.is_heartbeat())).unwrap();
        assert_eq!(heartbeats, [true, true, true, true, true, false]);
    }

    #[test]
    fn a_huge_bulk_is_skipped_with_constant_memory() {
        let mut splitter = Splitter::new(START);
        let size = 1u64 << 29;
        splitter.feed(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${size}\r\n").as_bytes(), |_| {}).unwrap();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..size >> 20 {
            splitter.feed(&piece, |_| {}).unwrap();
        }
        assert!(!splitter.at_boundary());
        let mut kept = 0;
        splitter
            .feed(b"\r\n", |command| {
                kept = command.arguments.iter().map(Vec::len).sum();
            })
            .unwrap();
        assert!(splitter.at_boundary());
        assert_eq!(kept, 4 + ARGUMENT_BYTES_KEPT);
    }

    #[test]
    fn nonsense_is_refused_for_good() {
        for bad in [
            &b"*1\r\n:5\r\n"[..],
            b"*x\r\n",
            b"$3\r\nSET\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n$4\r\nPINGxx",
            b"*2\r\n$6\r\nSELECT\r\n$1\r\nx\r\n",
            b"*99999999999\r\n",
        ] {
            let mut splitter = Splitter::new(START);
            let error = splitter.feed(bad, |_| {}).unwrap_err();
            assert_eq!(splitter.feed(b"PING\r\n", |_| {}), Err(error));
        }
    }

    fn any_command() -> impl Strategy<Value = Vec<u8>> {
        let argument = proptest::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            4 => proptest::collection::vec(argument, 1..6).prop_map(|arguments| {
                // A random name could be SELECT with a bad database only by an absurd chance.
                let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
                command(&arguments)
            }),
            1 => (0u32..16).prop_map(|db| command(&[b"SELECT", db.to_string().as_bytes()])),
            1 => Just(command(&[b"MULTI"])),
            1 => Just(command(&[b"EXEC"])),
            1 => Just(b"PING\r\n".to_vec()),
            1 => Just(b"\n".to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn any_division_gives_the_same_answer(
            commands in proptest::collection::vec(any_command(), 0..20),
            noise in proptest::collection::vec(any::<u8>(), 0..20),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut bytes = commands.concat();
            bytes.extend(noise);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let singles: Vec<&[u8]> = bytes.chunks(1).collect();
            let whole = run(&[&bytes]);
            prop_assert_eq!(&run(&pieces), &whole);
            prop_assert_eq!(&run(&singles), &whole);
        }

        #[test]
        fn whole_commands_end_where_they_were_joined(
            commands in proptest::collection::vec(any_command(), 0..20),
        ) {
            let (seen, result, _) = run(&[&commands.concat()]);
            prop_assert_eq!(result, Ok(()));
            let mut at = START.offset;
            prop_assert_eq!(seen.len(), commands.len());
            for (command, (start, end, _)) in commands.iter().zip(seen) {
                prop_assert_eq!(start, at);
                at += command.len() as u64;
                prop_assert_eq!(end, at);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = run(&[&bytes]);
        }
    }
}
