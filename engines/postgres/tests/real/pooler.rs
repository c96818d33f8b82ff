//! A pooler between us and the server, which gives each statement to whichever of its sessions is free.

use std::sync::Arc;

use mainstay_engine::*;
use mainstay_engine_kit::memory::MemorySnapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_ends_on_another_session_is_an_error() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("fsync", "off")]).await;
    let hba = "local all all trust\nhost all,replication all 127.0.0.1/32 trust\n";
    std::fs::write(layout.nodes[0].dir.join("pg_hba.conf"), hba).unwrap();
    let client = sql(&layout, 0).await;
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let port = layout.nodes[0].ports[0];
    let pooler = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = pooler.accept().await {
            tokio::spawn(pool(client, port));
        }
    });
    let mut access = layout.access();
    access.nodes[0].host = "127.0.0.2".into();
    let options = SnapshotOptions { way: Way::Files, jobs: 2, label: "pooled".into() };
    let sink = MemorySnapshot::new();
    let taken = Snapshot::snapshot(&*world.engine, &access, &options, sink, Arc::new(Quiet));
    let error = taken.await.unwrap_err();
    assert!(error.kind == Kind::Server && error.what.contains("stop the backup"), "{error}");
    world.host.kill("orders-1");
}

/// Passes one client's messages on; the one that ends the backup goes to a second session.
async fn pool(mut client: TcpStream, port: u16) -> std::io::Result<()> {
    let length = client.read_u32().await?;
    let mut startup = length.to_be_bytes().to_vec();
    startup.resize(length as usize, 0);
    client.read_exact(&mut startup[4..]).await?;
    let mut first = TcpStream::connect(("127.0.0.1", port)).await?;
    first.write_all(&startup).await?;
    if startup.windows(11).any(|name| name == b"replication") {
        tokio::io::copy_bidirectional(&mut client, &mut first).await?;
        return Ok(());
    }
    let mut second = TcpStream::connect(("127.0.0.1", port)).await?;
    second.write_all(&startup).await?;
    answer(&mut second, &mut tokio::io::sink()).await?;
    answer(&mut first, &mut client).await?;
    loop {
        let message = frame(&mut client).await?;
        let ends = message.windows(14).any(|name| name == b"pg_backup_stop");
        let server = if ends { &mut second } else { &mut first };
        server.write_all(&message).await?;
        // A query or a sync is answered up to when the server is ready again.
        if matches!(message[0], b'Q' | b'S') {
            answer(server, &mut client).await?;
        }
    }
}

async fn frame(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = vec![from.read_u8().await?];
    let length = from.read_u32().await?;
    all.extend_from_slice(&length.to_be_bytes());
    all.resize(length as usize + 1, 0);
    from.read_exact(&mut all[5..]).await?;
    Ok(all)
}

async fn answer(server: &mut TcpStream, to: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
    loop {
        let message = frame(server).await?;
        to.write_all(&message).await?;
        if message[0] == b'Z' {
            return Ok(());
        }
    }
}
