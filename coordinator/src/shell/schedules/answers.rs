//! What is answered about schedules, and how they are changed: each change is one create-if-absent of the next number.

use futures::{StreamExt, TryStreamExt};
use likeness_contract::ids::Name;
use likeness_contract::keys;
use likeness_contract::messages::{ApiError, ApiErrorKind, ApiReply};
use likeness_contract::schedules::{
    Became, Fired, Firing, Schedule, ScheduleDetail, ScheduleRequest, ScheduleSettings, ScheduleState, ScheduleStatus,
};
use likeness_link::error::chain;

use super::{keeper, stored};
use crate::core::job::Job;
use crate::core::resolve;
use crate::core::schedule::{Keeper, settings};
use crate::shell::api::{Answer, Api, conflict};
use crate::shell::context::now_ms;
use crate::shell::facts;

/// Most schedules: a list of all of them is one message.
const MAX_SCHEDULES: usize = 200;
/// Most firings that are shown.
const MAX_SHOWN: u32 = 500;
/// Next times that are told.
const NEXT: usize = 5;
/// Documents that are read at once.
const AT_ONCE: usize = 16;

/// Answers one request.
pub(in crate::shell) async fn answer(api: &Api, request: ScheduleRequest) -> Answer<ApiReply> {
    let one = |status| ApiReply::Schedules(vec![status]);
    Ok(match request {
        ScheduleRequest::Add { name, settings, replace } => one(add(api, name, *settings, replace).await?),
        ScheduleRequest::List => ApiReply::Schedules(list(api).await?),
        ScheduleRequest::Show { name, limit } => ApiReply::Schedule(Box::new(show(api, &name, limit).await?)),
        ScheduleRequest::Pause { name } => one(change(api, &name, ScheduleState::Paused).await?),
        ScheduleRequest::Resume { name } => one(change(api, &name, ScheduleState::Active).await?),
        ScheduleRequest::Remove { name } => one(change(api, &name, ScheduleState::Removed).await?),
    })
}

fn invalid(message: String) -> ApiError {
    ApiError { kind: ApiErrorKind::Invalid, message, nearest: Vec::new() }
}

async fn add(api: &Api, name: Name, settings: ScheduleSettings, replace: bool) -> Answer<ScheduleStatus> {
    settings::check(&name, &settings, now_ms()).map_err(invalid)?;
    // A job that can't be met now is most likely a slip of the pen; workers may come.
    let facts = facts::gather(&api.cx, &api.inbox, &settings.job).await?;
    match resolve::resolve(&settings.job, &facts) {
        Err(error) if error.kind != ApiErrorKind::Unavailable => return Err(error.into()),
        Ok(_) | Err(_) => {}
    }
    let before = stored::newest(&api.cx.store, &name).await?;
    let there = before.as_ref().filter(|schedule| schedule.state != ScheduleState::Removed);
    match there {
        Some(there) if there.settings == settings => return status(api, there.clone()).await,
        Some(_) if !replace => {
            return Err(conflict(format!(
                "schedule `{name}` is there already and does something else: `--replace` takes its place"
            )));
        }
        Some(_) => {}
        None if stored::all(&api.cx.store).await?.len() >= MAX_SCHEDULES => {
            return Err(conflict(format!("there are {MAX_SCHEDULES} schedules already: remove one")));
        }
        None => {}
    }
    let state = there.map_or(ScheduleState::Active, |schedule| schedule.state);
    append(api, before.as_ref(), name, state, settings).await
}

/// Pauses, resumes or removes; done twice it is done once.
async fn change(api: &Api, name: &Name, state: ScheduleState) -> Answer<ScheduleStatus> {
    let before = existing(api, name).await?;
    if before.state == state {
        return status(api, before).await;
    }
    if before.state == ScheduleState::Removed {
        return Err(conflict(format!("schedule `{name}` was removed: add it again")));
    }
    append(api, Some(&before), name.clone(), state, before.settings.clone()).await
}

async fn append(
    api: &Api,
    before: Option<&Schedule>,
    name: Name,
    state: ScheduleState,
    settings: ScheduleSettings,
) -> Answer<ScheduleStatus> {
    let now_ms = now_ms();
    let number = before.map_or(1, |before| before.number + 1);
    let changed_ms = before.map_or(now_ms, |before| before.changed_ms.max(now_ms));
    let wanted = Schedule { name, number, changed_ms, state, settings };
    let key = keys::schedule(&wanted.name, number);
    let there = api.cx.store.create_document(&key, &wanted).await?.document;
    if there != wanted {
        return Err(conflict(format!("schedule `{}` was changed by somebody else just now: look again", wanted.name)));
    }
    if let Some(before) = before {
        give_up_waiting(api, before, now_ms).await?;
    }
    api.cx.schedules_changed.notify_one();
    tracing::info!(schedule = %there.name, number, state = there.state.name(), "a schedule was changed");
    status(api, there).await
}

/// What waited for a job when its schedule was changed is told to be given up.
async fn give_up_waiting(api: &Api, before: &Schedule, now_ms: u64) -> Answer<()> {
    let Ok(keeper) = keeper(api, before.clone()).await? else { return Ok(()) };
    for firing in keeper.given_up(now_ms) {
        stored::create(&api.cx.store, &firing).await?;
    }
    Ok(())
}

/// A schedule that is there or was; an unknown one is answered with the nearest names.
async fn existing(api: &Api, name: &Name) -> Answer<Schedule> {
    match stored::newest(&api.cx.store, name).await? {
        Some(schedule) => Ok(schedule),
        None => {
            let known = stored::names(&api.cx.store).await?;
            Err(resolve::not_found("schedule", name.as_str(), known.iter().map(Name::as_str)).into())
        }
    }
}

async fn list(api: &Api) -> Answer<Vec<ScheduleStatus>> {
    let all = stored::all(&api.cx.store).await?;
    futures::stream::iter(all).map(|schedule| status(api, schedule)).buffered(AT_ONCE).try_collect().await
}

async fn show(api: &Api, name: &Name, limit: u32) -> Answer<ScheduleDetail> {
    let status = status(api, existing(api, name).await?).await?;
    let firings = stored::firings(&api.cx.store, name, limit.min(MAX_SHOWN) as usize).await?;
    let told = futures::stream::iter(firings).map(|firing| fired(api, firing));
    Ok(ScheduleDetail { status, firings: told.buffered(AT_ONCE).try_collect().await? })
}

async fn status(api: &Api, schedule: Schedule) -> Answer<ScheduleStatus> {
    let now_ms = now_ms();
    let keeper = match keeper(api, schedule.clone()).await {
        Ok(Ok(keeper)) => keeper,
        Ok(Err(trouble)) => return Ok(troubled(schedule, trouble)),
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(error) => return Ok(troubled(schedule, chain(&error))),
    };
    let next_ms = next(&keeper, now_ms);
    let next = next_ms.iter().map(|ms| keeper.timetable().text(*ms)).collect();
    let last = match stored::newest_firing(&api.cx.store, &schedule.name, now_ms).await? {
        Some(firing) => Some(fired(api, firing).await?),
        None => None,
    };
    Ok(ScheduleStatus { waiting_ms: keeper.waiting(now_ms), schedule, next_ms, next, last })
}

/// One that can't fire, and why not: the others are to be seen all the same.
fn troubled(schedule: Schedule, trouble: String) -> ScheduleStatus {
    let (next_ms, waiting_ms, last) = Default::default();
    ScheduleStatus { schedule, next_ms, next: vec![format!("never: {trouble}")], waiting_ms, last }
}

fn next(keeper: &Keeper, now_ms: u64) -> Vec<u64> {
    if keeper.schedule().state != ScheduleState::Active {
        return Vec::new();
    }
    let timetable = keeper.timetable();
    let first = timetable.next_after(now_ms.max(keeper.schedule().changed_ms));
    std::iter::successors(first, |ms| timetable.next_after(*ms)).take(NEXT).collect()
}

async fn fired(api: &Api, firing: Firing) -> Answer<Fired> {
    let Became::Submitted { job, .. } = &firing.became else { return Ok(Fired { firing, unmet: None, job: None }) };
    let asked = job.clone();
    let job = api.ask(move |core| core.job(&asked).map(Job::summary)).await?;
    let unmet = if job.is_none() { stored::unmet(&api.cx.store, &firing).await? } else { None };
    Ok(Fired { firing, unmet, job })
}
