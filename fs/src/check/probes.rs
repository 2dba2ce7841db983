//! What is tried on every storage, through two clients.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, join_all, try_join_all},
};
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, WriteMultipart, path::Path as Key};

use super::{Outcome, Probe, Verdict};

/// How often an order of two operations is tried: a cache in between shows within a few.
const ROUNDS: usize = 20;
/// How many writers race for one name, and how often.
const WRITERS: usize = 8;
const RACES: usize = 5;
/// A large object: two parts and a rest.
const LARGE_BYTES: usize = (16 << 20) + 1;
/// How long finding leftovers may take, with which nothing is wrong if it takes longer.
const SWEEP_DEADLINE: Duration = Duration::from_secs(30);
/// Slower than this a pull is felt to be slow: each blob takes a few requests, and a layer is a
/// hundred MiB.
const LATENCY_WARNING: Duration = Duration::from_millis(200);
/// In MiB a second.
const RATE_WARNING: f64 = 10.0;
/// What signed requests tolerate is 5 to 15 minutes; what leases and sweeps tolerate, seconds.
const SKEW_WARNING: Duration = Duration::from_secs(5);
const SKEW_FAILURE: Duration = Duration::from_secs(240);

type Check = for<'a> fn(&'a Probe) -> BoxFuture<'a, Outcome>;

/// Every check after the first, in the order in which they run.
pub const ALL: [(&str, Check); 10] = [
    ("read-after-write", |probe| Box::pin(read_after_write(probe, ROUNDS))),
    ("overwrite", |probe| Box::pin(overwrite(probe))),
    ("read-after-delete", |probe| Box::pin(read_after_delete(probe))),
    ("list-after-write", |probe| Box::pin(list_after_write(probe))),
    ("put-if-absent", |probe| Box::pin(put_if_absent(probe))),
    ("multipart", |probe| Box::pin(multipart(probe))),
    ("leftovers", |probe| Box::pin(leftovers(probe))),
    ("ranges", |probe| Box::pin(ranges(probe))),
    ("speed", |probe| Box::pin(speed(probe))),
    ("clock", |probe| Box::pin(clock(probe))),
];

/// Whether we are let in: to write, to read, to list and to remove.
pub async fn access(probe: &Probe) -> Outcome {
    let key = probe.key("access");
    let objects = &probe.first.objects;
    objects.put(&key, Bytes::from_static(b"larder").into()).await?;
    objects.get(&key).await?.bytes().await?;
    objects.list(Some(&probe.prefix)).try_collect::<Vec<_>>().await?;
    objects.delete(&key).await?;
    Ok((Verdict::Ok, format!("{objects}: may write, read, list and remove")))
}

/// Whether one client reads at once what another has written, also when it has just missed it.
pub async fn read_after_write(probe: &Probe, rounds: usize) -> Outcome {
    let mut missed = 0;
    for round in 0..rounds {
        // Not one of the names that never change: a directory treats those with less care.
        let key = probe.key(format!("new-{round}")).join("data");
        let before = probe.second.objects.get(&key).await;
        if !matches!(before, Err(Error::NotFound { .. })) {
            let detail = "a name that was never written could be read";
            return Ok((Verdict::Failure, detail.to_owned()));
        }
        probe.first.objects.put(&key, content(round).into()).await?;
        missed += usize::from(read(&probe.second, &key).await? != Some(content(round)));
    }
    Ok(consistency(missed, rounds, "a new object was not seen by a second client"))
}

/// Whether one client reads at once what another has put in the place of something older.
async fn overwrite(probe: &Probe) -> Outcome {
    let key = probe.key("link");
    let mut stale = 0;
    for round in 0..ROUNDS {
        probe.first.objects.put(&key, content(round).into()).await?;
        stale += usize::from(read(&probe.second, &key).await? != Some(content(round)));
    }
    Ok(consistency(stale, ROUNDS, "a second client still read the old content"))
}

async fn read_after_delete(probe: &Probe) -> Outcome {
    let mut stale = 0;
    for round in 0..ROUNDS {
        let key = probe.key(format!("gone-{round}")).join("link");
        probe.first.objects.put(&key, content(round).into()).await?;
        read(&probe.second, &key).await?;
        probe.first.objects.delete(&key).await?;
        stale += usize::from(read(&probe.second, &key).await?.is_some());
    }
    Ok(consistency(stale, ROUNDS, "a second client still read what was removed"))
}

async fn list_after_write(probe: &Probe) -> Outcome {
    let prefix = probe.key("list");
    let mut missed = 0;
    for round in 0..ROUNDS {
        let key = prefix.clone().join(round.to_string());
        probe.first.objects.put(&key, content(round).into()).await?;
        let mut listed = probe.second.objects.list(Some(&prefix));
        let mut is_listed = false;
        while let Some(meta) = listed.next().await.transpose()? {
            is_listed |= meta.location == key;
        }
        missed += usize::from(!is_listed);
    }
    // Nothing that is served depends on a listing.
    let (verdict, detail) = consistency(missed, ROUNDS, "a listing lacked a new object");
    Ok((if verdict == Verdict::Ok { verdict } else { Verdict::Warning }, detail))
}

/// Whether of many writers of one name exactly one wins. Larder does not need it to be right, but
/// to fetch a blob once for all nodes.
async fn put_if_absent(probe: &Probe) -> Outcome {
    // At the same time: some servers let those who lose wait for seconds.
    let races = (0..RACES).map(|race| winners(probe, probe.key(format!("race-{race}"))));
    let winners = match try_join_all(races).await {
        Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
            let detail = "not supported here: nodes may fetch the same blob twice";
            return Ok((Verdict::Warning, detail.to_owned()));
        }
        winners => winners?,
    };
    let wrong = winners.into_iter().filter(|winners| *winners != 1).count();
    if wrong > 0 {
        let detail = format!(
            "not atomic: {wrong} of {RACES} races had not one winner; nodes may fetch the same \
             blob twice"
        );
        return Ok((Verdict::Warning, detail));
    }
    Ok((Verdict::Ok, format!("atomic: one winner in each of {RACES} races")))
}

/// How many of several writers of `key` are told that they created it.
async fn winners(probe: &Probe, key: Key) -> object_store::Result<usize> {
    let attempts = (0..WRITERS).map(|writer| {
        let backend = if writer % 2 == 0 { &probe.first } else { &probe.second };
        let options = PutOptions::from(PutMode::Create);
        backend.objects.put_opts(&key, content(writer).into(), options)
    });
    let mut winners = 0;
    for attempt in join_all(attempts).await {
        match attempt {
            Ok(_) => winners += 1,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(winners)
}

/// Whether large objects can be sent in parts, and leave nothing when that is given up.
async fn multipart(probe: &Probe) -> Outcome {
    let (key, sent) = (probe.key("large"), large());
    send_in_parts(probe, &key, &sent).await?.finish().await?;
    let received = read(&probe.second, &key).await?;
    probe.first.objects.delete(&key).await?;
    if received.as_ref() != Some(&sent) {
        return Ok((Verdict::Failure, "an object sent in parts came back different".to_owned()));
    }
    let given_up = probe.key("given-up");
    send_in_parts(probe, &given_up, &sent).await?.abort().await?;
    if read(&probe.second, &given_up).await?.is_some() {
        return Ok((Verdict::Failure, "an upload that was given up can be read".to_owned()));
    }
    Ok((Verdict::Ok, format!("{} MiB in parts", sent.len() >> 20)))
}

async fn send_in_parts(
    probe: &Probe,
    key: &Key,
    content: &Bytes,
) -> object_store::Result<WriteMultipart> {
    let upload = probe.first.objects.put_multipart(key).await?;
    let part_bytes = usize::try_from(probe.first.part_bytes).unwrap_or(usize::MAX);
    let mut parts = WriteMultipart::new_with_chunk_size(upload, part_bytes);
    parts.put(content.clone());
    parts.wait_for_capacity(1).await?;
    Ok(parts)
}

/// Whether what killed nodes leave of uploads can be found. Nothing is old enough to be removed.
async fn leftovers(probe: &Probe) -> Outcome {
    let Some(leftovers) = &probe.first.leftovers else {
        return Ok((Verdict::Ok, "the service removes them by itself".to_owned()));
    };
    let why = match tokio::time::timeout(SWEEP_DEADLINE, leftovers.sweep(Duration::MAX)).await {
        Ok(Ok(_)) => return Ok((Verdict::Ok, "uploads of killed nodes can be found".to_owned())),
        Ok(Err(e)) => probe.first.explain(&e),
        Err(_) => probe.first.explain_silence(SWEEP_DEADLINE),
    };
    let advice = "uploads of killed nodes stay and cost space; allow us to list and abort them";
    Ok((Verdict::Warning, format!("{advice}: {why}")))
}

async fn ranges(probe: &Probe) -> Outcome {
    let (key, sent) = (probe.key("ranges"), large());
    probe.first.objects.put(&key, sent.clone().into()).await?;
    for range in [0..1, 1..100, 1 << 20..(9 << 20) + 7, sent.len() - 1..sent.len()] {
        let wanted = range.start as u64..range.end as u64;
        if probe.second.objects.get_range(&key, wanted).await? != sent[range.clone()] {
            let detail = format!("bytes {} to {} came back different", range.start, range.end);
            return Ok((Verdict::Failure, detail));
        }
    }
    probe.first.objects.delete(&key).await?;
    Ok((Verdict::Ok, "parts of an object can be read".to_owned()))
}

/// How long small objects take, and how fast large ones are.
async fn speed(probe: &Probe) -> Outcome {
    let (small, large_key, sent) = (probe.key("small"), probe.key("speed"), large());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        probe.first.objects.put(&small, content(round).into()).await?;
        let started = Instant::now();
        read(&probe.second, &small).await?;
        times.push(started.elapsed());
    }
    times.sort();
    let started = Instant::now();
    probe.first.objects.put(&large_key, sent.clone().into()).await?;
    let up = rate(sent.len(), started.elapsed());
    let started = Instant::now();
    read(&probe.second, &large_key).await?;
    let down = rate(sent.len(), started.elapsed());
    probe.first.objects.delete(&large_key).await?;
    let latency = times[times.len() / 2];
    let latency_ms = latency.as_secs_f64() * 1000.0;
    let detail = format!("{latency_ms:.1} ms a read, {up:.0} MiB/s up, {down:.0} MiB/s down");
    if latency > LATENCY_WARNING || up.min(down) < RATE_WARNING {
        let advice =
            "clients will wait for what no node has in its cache; is it the nearest storage?";
        return Ok((Verdict::Warning, format!("{detail}: {advice}")));
    }
    Ok((Verdict::Ok, detail))
}

/// Whether the server's clock and ours agree.
async fn clock(probe: &Probe) -> Outcome {
    let key = probe.key("clock");
    let before = SystemTime::now();
    probe.first.objects.put(&key, content(0).into()).await?;
    let server = SystemTime::from(probe.first.objects.head(&key).await?.last_modified);
    // Servers tell whole seconds.
    let early = before.duration_since(server).unwrap_or_default();
    let late = server.duration_since(SystemTime::now()).unwrap_or_default();
    let skew = early.max(late).saturating_sub(Duration::from_secs(1));
    let detail = format!("the server's clock differs by {} s; run NTP on both", skew.as_secs());
    Ok(match skew {
        skew if skew > SKEW_FAILURE => (Verdict::Failure, detail),
        skew if skew > SKEW_WARNING => (Verdict::Warning, detail),
        _ => (Verdict::Ok, "the server's clock agrees with ours".to_owned()),
    })
}

async fn read(backend: &crate::store::Backend, key: &Key) -> object_store::Result<Option<Bytes>> {
    match backend.objects.get(key).await {
        Ok(object) => object.bytes().await.map(Some),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn consistency(wrong: usize, rounds: usize, what: &str) -> (Verdict, String) {
    if wrong == 0 {
        return (Verdict::Ok, format!("{rounds} of {rounds} right through a second client"));
    }
    let detail = format!(
        "{what} in {wrong} of {rounds} rounds: this storage is not consistent, and replicas on it \
         would disagree"
    );
    (Verdict::Failure, detail)
}

fn rate(size_bytes: usize, time: Duration) -> f64 {
    (size_bytes >> 20) as f64 / time.as_secs_f64()
}

/// The same length each time: a change that is only seen by its size is not seen.
fn content(round: usize) -> Bytes {
    format!("{round:032}").into()
}

fn large() -> Bytes {
    (0..LARGE_BYTES).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
