//! The table of all routes: what the router serves and what the OpenAPI document tells are made from it.

use axum::handler::Handler;
use axum::middleware;
use axum::routing::{self, MethodRouter};
use likeness_contract::datasets::Removal;
use likeness_contract::documents::{DatasetManifest, ModelManifest, Release, ReportManifest};
use likeness_contract::jobs::JobRequest;
use likeness_contract::messages::{JobDetail, JobSummary};
use likeness_contract::schedules::{ScheduleDetail, ScheduleSettings, ScheduleStatus};
use likeness_contract::search::{SearchRequest, SearchResults};
use likeness_contract::usage::{Estimate, JobUsage};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::access::Role;
use super::guard::{Access, Guarded, pass};
use super::{Gateway, images, jobs, models, openapi, page, releases, reports, schedules, search, session, system};

/// Makes the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// What an answer is.
#[derive(Debug, Clone, Copy)]
pub enum Reply {
    /// JSON.
    Json(SchemaOf),
    /// Something else.
    Bytes(&'static str),
    /// Nothing.
    Nothing,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// `get`, `post`, `put`, `delete`.
    pub method: &'static str,
    /// Its path, with `{name}` for what varies.
    pub path: &'static str,
    /// Who may use it, and how long it may take.
    pub guarded: Guarded,
    /// In a few words.
    pub summary: &'static str,
    /// More.
    pub description: &'static str,
    /// What may stand after `?`.
    pub query: Option<SchemaOf>,
    /// Its body: media type and schema.
    pub body: Option<(&'static str, SchemaOf)>,
    /// Status and kind of a good answer.
    pub reply: (u16, Reply),
    serves: MethodRouter<Gateway>,
}

impl Route {
    fn new(
        method: &'static str,
        path: &'static str,
        role: Role,
        serves: MethodRouter<Gateway>,
        summary: &'static str,
    ) -> Self {
        let guarded = Guarded { access: Access::Needs(role), unhurried: false };
        let reply = (200, Reply::Nothing);
        Self { method, path, guarded, summary, description: "", query: None, body: None, reply, serves }
    }

    fn open(mut self) -> Self {
        self.guarded.access = Access::Open;
        self
    }

    fn unhurried(mut self) -> Self {
        self.guarded.unhurried = true;
        self
    }

    fn says(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    fn asks<T: JsonSchema>(self) -> Self {
        Self { query: Some(schema_of::<T>), ..self }
    }

    fn takes<T: JsonSchema>(self) -> Self {
        Self { body: Some(("application/json", schema_of::<T>)), ..self }
    }

    fn takes_form<T: JsonSchema>(self) -> Self {
        Self { body: Some(("multipart/form-data", schema_of::<T>)), ..self }
    }

    fn gives<T: JsonSchema>(self) -> Self {
        Self { reply: (200, Reply::Json(schema_of::<T>)), ..self }
    }

    fn gives_bytes(self, media_type: &'static str) -> Self {
        Self { reply: (200, Reply::Bytes(media_type)), ..self }
    }

    fn status(mut self, status: u16) -> Self {
        self.reply.0 = status;
        self
    }

    /// What serves it, behind its guard.
    pub fn guarded(self, gateway: &Gateway) -> MethodRouter<Gateway> {
        self.serves.route_layer(middleware::from_fn_with_state((gateway.clone(), self.guarded), pass))
    }
}

fn get<H: Handler<T, Gateway>, T: 'static>(path: &'static str, role: Role, handler: H, summary: &'static str) -> Route {
    Route::new("get", path, role, routing::get(handler), summary)
}

fn post<H: Handler<T, Gateway>, T: 'static>(
    path: &'static str,
    role: Role,
    handler: H,
    summary: &'static str,
) -> Route {
    Route::new("post", path, role, routing::post(handler), summary)
}

/// Every route.
pub fn all() -> Vec<Route> {
    [searches(), about_jobs(), about_schedules(), about_releases(), about_reports(), about_system(), pages()]
        .into_iter()
        .flatten()
        .collect()
}

fn searches() -> Vec<Route> {
    use Role::Reader;
    vec![
        post("/v1/search", Reader, search::search, "Search")
            .says("The question of the NATS service `likeness.v1.search`, without its envelope. Images in it (base64) may be of any size that the gateway takes: they are shrunk before they travel.")
            .takes::<SearchRequest>()
            .gives::<SearchResults>(),
        post("/v1/search/batch", Reader, search::batch, "Search many")
            .says("Up to 256 questions; each has results or its own problem.")
            .takes::<search::Batch>()
            .gives::<search::BatchAnswers>(),
        post("/v1/search/image", Reader, search::with_image, "Search with an uploaded image")
            .takes_form::<search::ImageForm>()
            .gives::<SearchResults>(),
        get("/v1/aliases/{alias}/vocabulary", Reader, search::vocabulary, "Attributes of an alias")
            .gives::<search::VocabularyReply>(),
        get("/v1/images/{item}", Reader, images::image, "The image of an item")
            .says("410 once the item is removed. With the `image` of a hit as `part` and `row` nothing has to be looked for.")
            .asks::<images::WhichImage>()
            .gives_bytes("image/*"),
        get("/v1/thumbnails/{item}", Reader, images::thumbnail, "A small JPEG of an item's image")
            .asks::<images::WhichThumbnail>()
            .gives_bytes("image/jpeg"),
    ]
}

fn about_jobs() -> Vec<Route> {
    use Role::{Operator, Reader};
    vec![
        get("/v1/jobs", Reader, jobs::list, "Jobs, newest first").asks::<jobs::HowMany>().gives::<Vec<JobSummary>>(),
        post("/v1/jobs", Operator, jobs::submit, "Submit a job")
            .says("Answered once the job is stored; the same work asked again is the same job.")
            .takes::<JobRequest>()
            .gives::<JobSummary>()
            .status(202),
        post("/v1/jobs/plan", Reader, jobs::plan, "What a job would take").takes::<JobRequest>().gives::<Estimate>(),
        get("/v1/jobs/{job}", Reader, jobs::show, "A job in full").gives::<JobDetail>(),
        get("/v1/jobs/{job}/tasks", Reader, jobs::tasks, "Where each task of a job stands").gives::<jobs::Tasks>(),
        get("/v1/jobs/{job}/usage", Reader, jobs::usage, "Time on devices, beside the estimate").gives::<JobUsage>(),
        get("/v1/jobs/{job}/events", Reader, jobs::events, "Events of a job as they happen")
            .says("Server-sent events from the opening of the job's newest run: `task` and `job` with the JSON of the event, `end` after the run is closed. `Last-Event-ID` goes on after an event.")
            .gives_bytes("text/event-stream")
            .unhurried(),
        post("/v1/jobs/{job}/cancel", Operator, jobs::cancel, "Cancel a job").gives::<JobSummary>(),
        post("/v1/jobs/{job}/retry", Operator, jobs::retry, "Try a failed or cancelled job again").gives::<JobSummary>(),
    ]
}

fn about_schedules() -> Vec<Route> {
    use Role::{Operator, Reader};
    let put = |path, handler, summary| Route::new("put", path, Operator, handler, summary);
    vec![
        get("/v1/schedules", Reader, schedules::list, "Schedules, by name").gives::<Vec<ScheduleStatus>>(),
        get("/v1/schedules/{schedule}", Reader, schedules::show, "A schedule, and what became of its times")
            .says("Newest first; also of a schedule that was removed.")
            .asks::<schedules::HowMany>()
            .gives::<ScheduleDetail>(),
        put("/v1/schedules/{schedule}", routing::put(schedules::add), "Add a schedule")
            .says("The same asked again is the same schedule; another one in the place of one that is there needs `replace`.")
            .asks::<schedules::Replace>()
            .takes::<ScheduleSettings>()
            .gives::<ScheduleStatus>(),
        post("/v1/schedules/{schedule}/pause", Operator, schedules::pause, "Let a schedule fire no more for now")
            .gives::<ScheduleStatus>(),
        post("/v1/schedules/{schedule}/resume", Operator, schedules::resume, "Let a schedule fire again")
            .gives::<ScheduleStatus>(),
        Route::new("delete", "/v1/schedules/{schedule}", Operator, routing::delete(schedules::remove), "Remove a schedule")
            .says("Its history stays, and jobs that run go on.")
            .gives::<ScheduleStatus>(),
    ]
}

fn about_releases() -> Vec<Route> {
    use Role::{Operator, Reader};
    vec![
        get("/v1/releases", Reader, releases::list, "Releases, oldest first")
            .asks::<releases::OfAlias>()
            .gives::<Vec<Release>>(),
        get("/v1/releases/compare", Reader, releases::compare, "Two releases query by query")
            .says("By their reports; releases without one can't be compared.")
            .asks::<releases::TwoReleases>()
            .gives::<releases::ComparedReleases>(),
        get("/v1/releases/{alias}/{number}", Reader, releases::show, "One release").gives::<Release>(),
        post("/v1/releases/{alias}/promote", Operator, releases::promote, "Serve a generation, without a gate")
            .says("Answered when the searchers have loaded it.")
            .takes::<releases::Promotion>()
            .gives::<Release>()
            .unhurried(),
        post("/v1/releases/{alias}/rollback", Operator, releases::roll_back, "Serve an older release again")
            .says("It becomes the newest one.")
            .takes::<releases::Rollback>()
            .gives::<Release>()
            .unhurried(),
    ]
}

fn about_reports() -> Vec<Route> {
    use Role::Reader;
    vec![
        get("/v1/reports", Reader, reports::list, "Reports with their headlines").gives::<Vec<ReportManifest>>(),
        get("/v1/reports/compare", Reader, reports::compare, "Two reports query by query")
            .asks::<reports::TwoReports>()
            .gives::<Value>(),
        get("/v1/reports/{report}", Reader, reports::show, "A report's headline and files").gives::<ReportManifest>(),
        get("/v1/reports/{report}/figures", Reader, reports::figures, "All figures of a report").gives::<Value>(),
        get("/v1/reports/{report}/page", Reader, reports::page, "A report's page with plots").gives_bytes("text/html"),
        get("/v1/models", Reader, models::list, "Models, with the aliases that serve them")
            .gives::<Vec<models::ServingModel>>(),
        get("/v1/models/{model}", Reader, models::show, "One model").gives::<ModelManifest>(),
        get("/v1/models/{model}/training", Reader, models::training, "The curves of a training")
            .gives::<models::Training>(),
    ]
}

fn about_system() -> Vec<Route> {
    use Role::{Admin, Reader};
    vec![
        get("/v1/status", Reader, system::status, "Workers, queues, placement").gives::<system::WholeStatus>(),
        get("/v1/datasets", Reader, system::datasets, "Datasets with their newest version").gives::<Vec<DatasetManifest>>(),
        post("/v1/datasets/{dataset}/removals", Admin, system::change_items, "Take items out of a dataset, or put them back")
            .says("Searchers and this gateway honour it within a moment.")
            .takes::<system::ChangedItems>()
            .gives::<Removal>(),
        post("/v1/reconcile", Admin, system::reconcile, "Compare store and broker now")
            .gives::<system::Reconciled>()
            .unhurried(),
        get("/v1/session", Reader, session::show, "Who asks").gives::<session::Session>().open(),
        post("/v1/session", Reader, session::begin, "Begin a session of the page: the key as a cookie")
            .takes::<session::NewSession>()
            .gives::<session::Session>()
            .open(),
        Route::new("delete", "/v1/session", Reader, routing::delete(session::end), "End the session").status(204).open(),
        get("/healthz", Reader, system::health, "Whether this process answers").gives::<system::Health>().open(),
        get("/readyz", Reader, system::ready, "Whether searches can be answered")
            .says("503 with the same body while they can't: without a connection to NATS, without a searcher, or without a release that searchers hold.")
            .gives::<system::Ready>()
            .open(),
    ]
}

fn pages() -> Vec<Route> {
    use Role::Reader;
    vec![
        get("/openapi.json", Reader, openapi::served, "This document").gives::<Value>().open(),
        get("/docs", Reader, page::reference, "The reference of the API").gives_bytes("text/html").open(),
        get("/", Reader, page::index, "The web page").gives_bytes("text/html").open(),
        get("/page/{file}", Reader, page::file, "Files of the web page").gives_bytes("text/*").open(),
    ]
}
