//! H inner steps from the checkpoint before the round.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use candle_core::Device;
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{CheckpointOutput, TaskOutput, TrainStage, task_ids};
use likeness_contract::keys;
use likeness_contract::settings::Loss;
use likeness_data::TripletSampler;
use likeness_model::{StepFigures, Trainer};

use super::batch::Batch;
use super::figures::{self, FigureRow, Phase};
use super::training_set::{self, TrainingSet};
use super::validation::{self, Validation};
use super::{Before, advice, handed_on, stage, trainer};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Batches that are ready before the device asks for them.
const PREFETCHED: usize = 2;
/// Share of all steps that counts as early: advice is given then.
const EARLY: f64 = 0.2;

/// Trains `steps` steps from `first_step` on and stores θ′ and the figures. The only slot of a round also measures where the
/// settings say so; of several, each stores what its optimizer remembers apart. Once the training has stopped it hands the checkpoint on.
pub async fn run(
    cx: &TaskContext,
    round: u32,
    slot: u32,
    first_step: u64,
    steps: u32,
) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let before = Before::of(cx, round).await?;
    if before.checkpoint.stopped {
        return Ok(handed_on(before.checkpoint));
    }
    let step = before.checkpoint.step;
    if step != first_step {
        return Err(TaskError::invalid(format!("round {round} starts at step {first_step}, its checkpoint at {step}")));
    }
    let theta = cx.store.read(&before.checkpoint.object).await?;
    let state = match before.state(slot) {
        Some(state) => Some(cx.store.read(state).await?),
        None => None,
    };
    let set = training_set::load(cx, &stage).await?;
    let inner = Round { cx: cx.clone(), stage, set, round, slot, first_step, steps: u64::from(steps), theta, state };
    let trained = cx.device.run(move |device| inner.train(device)).await?;
    store(cx, round, slot, first_step + u64::from(steps), trained).await
}

async fn store(cx: &TaskContext, round: u32, slot: u32, step: u64, trained: Trained) -> Result<TaskOutput, TaskError> {
    let Trained { theta, state, figures, loss, validation, images_per_second, wait_share } = trained;
    let of_slot = |what: &'static str| move |digest: &Digest| keys::slot(cx.job(), round + 1, slot, what, digest);
    let object = match state {
        None => cx.create_object(|digest| keys::checkpoint(cx.job(), round + 1, digest), theta).await?,
        Some(_) => cx.create_object(of_slot("weights"), theta).await?,
    };
    let state = match state {
        Some(state) => Some(cx.create_object(of_slot("optimizer"), state).await?),
        None => None,
    };
    let what = format!("figures-{}", task_ids::slot(round, slot));
    let metrics = cx.create_object(|digest| keys::job_data(cx.job(), &what, digest, "parquet"), figures).await?;
    let checkpoint = CheckpointOutput {
        metrics: Some(metrics),
        loss: Some(loss),
        validation_loss: validation.as_ref().map(|validation| validation.figures.loss),
        validation_map: validation.and_then(|validation| validation.map),
        images_per_second: Some(images_per_second),
        wait_share: Some(wait_share),
        ..CheckpointOutput::of(step, object)
    };
    Ok(match state {
        None => TaskOutput::Checkpoint(checkpoint),
        Some(state) => TaskOutput::Slot { checkpoint, state },
    })
}

/// One slot's work; all of it runs on the device thread.
struct Round {
    cx: TaskContext,
    stage: TrainStage,
    set: Arc<TrainingSet>,
    round: u32,
    slot: u32,
    first_step: u64,
    steps: u64,
    theta: Bytes,
    /// What its optimizer remembers, of one of several slots that was taken before.
    state: Option<Bytes>,
}

/// What it leaves. All but the last two are a function of spec, round and slot.
struct Trained {
    /// θ′; of the only slot of a round with what the optimizer remembers.
    theta: Vec<u8>,
    /// What it remembers, of one of several slots.
    state: Option<Vec<u8>>,
    figures: Vec<u8>,
    loss: f64,
    validation: Option<Validation>,
    images_per_second: f64,
    wait_share: f64,
}

impl Round {
    fn train(&self, device: &Device) -> Result<Trained, TaskError> {
        let trainer = trainer(&self.stage, &self.theta, self.state.as_ref(), device)?;
        let mut trainer = trainer.with_compute(self.cx.device.compute());
        let sampler = validation::sampler(&self.stage, &self.set.train)?;

        let started = Instant::now();
        let (steps, waited) = std::thread::scope(|scope| {
            let (sender, batches) = sync_channel(PREFETCHED);
            scope.spawn(|| self.prefetch(&sampler, sender));
            self.steps(&mut trainer, &batches, device)
        })?;
        let elapsed = started.elapsed().as_secs_f64().max(1e-9);
        self.advise(&steps);

        let alone = self.stage.train.optimizer.rounds().is_none();
        let (theta, state) = match alone {
            true => (trainer.checkpoint()?, None),
            false => (trainer.theta()?, Some(trainer.optimizer_state()?)),
        };
        // Of several slots what they learned together is measured.
        let validation = if alone { self.validate(&trainer.serving()?, device)? } else { None };
        let rows = figure_rows(self.first_step, &steps, validation.as_ref().map(|validation| &validation.figures));
        let mean = StepFigures::mean_of(&steps).ok_or_else(|| TaskError::invalid("a round without steps"))?;
        Ok(Trained {
            theta,
            state,
            figures: figures::encode(&rows)?,
            loss: mean.loss,
            validation,
            images_per_second: mean.rows as f64 / elapsed,
            wait_share: waited.as_secs_f64() / elapsed,
        })
    }

    /// Makes batches while the device computes; ends when nobody takes them any more.
    fn prefetch(&self, sampler: &TripletSampler, batches: SyncSender<Result<Batch, TaskError>>) {
        for step in self.first_step..self.first_step + self.steps {
            let batch = Batch::new(&self.stage, &self.set.train, sampler.batch(self.stage.batch_of(step, self.slot)));
            if batches.send(batch).is_err() {
                return;
            }
        }
    }

    /// The figures of every step, and how long the device waited for data.
    fn steps(
        &self,
        trainer: &mut Trainer,
        batches: &Receiver<Result<Batch, TaskError>>,
        device: &Device,
    ) -> Result<(Vec<StepFigures>, Duration), TaskError> {
        let mut steps = Vec::new();
        let mut waited = Duration::ZERO;
        let started = Instant::now();
        for done in 0..self.steps {
            self.go_on()?;
            let asked = Instant::now();
            let batch = batches.recv().map_err(|_| TaskError::transient("no batch was made"))??;
            waited += asked.elapsed();
            let figures = trainer.step(&batch.on(device)?)?;
            if self.first_step + done == 0 && self.stage.train.init.is_none() {
                self.tell(advice::at_the_start(&figures));
            }
            steps.push(figures);
            self.cx.progress(done + 1, self.steps, note(&steps, started));
        }
        Ok((steps, waited))
    }

    /// Fails with the reason when the attempt was told to stop.
    fn go_on(&self) -> Result<(), TaskError> {
        if self.cx.cancelled() { self.cx.ensure_leased() } else { Ok(()) }
    }

    fn advise(&self, steps: &[StepFigures]) {
        // Of other losses the drawn triplets are figures alone: neither margin nor negatives can be at fault.
        if self.stage.train.loss != Loss::Triplet {
            return;
        }
        let end = (self.first_step + self.steps) as f64;
        if self.round == 0 || end <= EARLY * self.stage.total_steps() as f64 {
            self.tell(advice::early_on(steps));
        }
    }

    fn tell(&self, advice: Option<String>) {
        if let Some(advice) = advice {
            tracing::info!(job = %self.cx.job(), round = self.round, advice);
            self.cx.progress(self.steps, self.steps, advice);
        }
    }

    fn validate(&self, trainer: &Trainer, device: &Device) -> Result<Option<Validation>, TaskError> {
        let validation =
            validation::after(self.round, trainer, &self.stage, &self.set.validation, device, || self.go_on())?;
        if let Some(note) = validation.as_ref().and_then(Validation::in_words) {
            self.cx.progress(self.steps, self.steps, note);
        }
        Ok(validation)
    }
}

fn note(steps: &[StepFigures], started: Instant) -> String {
    let Some(last) = steps.last() else { return String::new() };
    let images: u64 = steps.iter().map(|step| step.rows).sum();
    let rate = images as f64 / started.elapsed().as_secs_f64().max(1e-9);
    format!("loss {:.4}, correct {:.0} %, {rate:.0} images/s", last.loss, 100.0 * last.correct)
}

fn figure_rows(first_step: u64, steps: &[StepFigures], validation: Option<&StepFigures>) -> Vec<FigureRow> {
    let train = steps.iter().zip(first_step..);
    let mut rows: Vec<_> =
        train.map(|(figures, step)| FigureRow { step, phase: Phase::Train, figures: figures.clone() }).collect();
    let step = first_step + steps.len() as u64;
    rows.extend(validation.map(|figures| FigureRow { step, phase: Phase::Validation, figures: figures.clone() }));
    rows
}
