//! The device and the one thread that computes on it.
//!
//! Closures run one after the other in the order in which they were sent, so that two tasks never share a
//! device's memory and tokio's threads stay free for renewals.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use likeness_contract::jobs::DeviceClass;
use likeness_model::CpuCompute;
use tokio::sync::oneshot;

use crate::args::DeviceName;
use crate::error::TaskError;

type Closure = Box<dyn FnOnce(&Device) + Send>;

/// A handle to the device thread; clones share the thread.
#[derive(Clone)]
pub struct DeviceThread {
    device: Device,
    compute: CpuCompute,
    closures: mpsc::Sender<Closure>,
    busy_us: Arc<AtomicU64>,
}

impl fmt::Debug for DeviceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceThread").field("device", &self.device.location()).finish_non_exhaustive()
    }
}

impl DeviceThread {
    /// Starts a thread for `device`; it ends with its last handle.
    pub fn start(device: Device) -> std::io::Result<Self> {
        let (closures, queue) = mpsc::channel::<Closure>();
        let own = device.clone();
        std::thread::Builder::new().name("device".into()).spawn(move || {
            for closure in queue {
                closure(&own);
            }
        })?;
        Ok(Self { device, compute: CpuCompute::default(), closures, busy_us: Arc::default() })
    }

    /// The same thread, its models computed as `compute` says.
    #[must_use]
    pub fn computing(self, compute: CpuCompute) -> Self {
        Self { compute, ..self }
    }

    /// How models are computed on a CPU.
    pub fn compute(&self) -> CpuCompute {
        self.compute
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Another handle to the same thread that counts its own device time from 0.
    pub fn metered(&self) -> Self {
        Self { busy_us: Arc::default(), ..self.clone() }
    }

    /// Time that closures sent through this handle (and its clones) spent on the thread, milliseconds.
    pub fn device_ms(&self) -> u64 {
        self.busy_us.load(Ordering::Relaxed) / 1000
    }

    /// Runs `f` on the thread and waits for its answer. A panic becomes a transient error with its message.
    ///
    /// When the waiting future is dropped, a closure that did not start yet is left out.
    pub async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Device) -> Result<T, TaskError> + Send + 'static,
    ) -> Result<T, TaskError> {
        let (answer, answered) = oneshot::channel();
        let busy_us = Arc::clone(&self.busy_us);
        let closure: Closure = Box::new(move |device| {
            if answer.is_closed() {
                return;
            }
            let started = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| f(device)));
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            busy_us.fetch_add(micros, Ordering::Relaxed);
            // Nobody waits any more: the task was interrupted.
            let _ = answer.send(result.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
        });
        let gone = || TaskError::transient("the device thread has ended");
        self.closures.send(closure).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// The error for a caught panic.
pub fn panicked(panic: &(dyn Any + Send)) -> TaskError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    TaskError::transient(format!("panicked: {}", text.unwrap_or("without a message")))
}

/// Opens a device by its name.
///
/// # Errors
/// When this build or this machine does not have it.
pub fn open(name: DeviceName) -> Result<Device, TaskError> {
    let device = match name {
        DeviceName::Cpu => return Ok(Device::Cpu),
        DeviceName::Cuda(number) => Device::new_cuda(number),
        DeviceName::Metal => Device::new_metal(0),
    };
    device.map_err(|error| TaskError::transient(format!("device `{name}` cannot be opened: {error}")))
}

/// The class of a device.
pub fn class_of(device: &Device) -> DeviceClass {
    match device {
        Device::Cpu => DeviceClass::Cpu,
        Device::Cuda(_) => DeviceClass::Cuda,
        Device::Metal(_) => DeviceClass::Metal,
    }
}

/// Computes small things of known answer: a broken device or driver must not take tasks.
///
/// # Errors
/// When the device fails, or says something else than the processor would.
pub fn self_test(device: &Device) -> Result<(), TaskError> {
    let wrong = |what: &str| TaskError::transient(format!("the device computes a wrong {what}"));
    let a = Tensor::arange(0f32, 64.0, device)?.reshape((8, 8))?;
    let product = a.matmul(&a.t()?)?.to_dtype(DType::F64)?;
    // Row 7 is 56..=63, so its square sum is exact in f32.
    let corner = product.get(7)?.get(7)?.to_scalar::<f64>()?;
    if corner != (56..64).map(|i| f64::from(i * i)).sum::<f64>() {
        return Err(wrong("matrix product"));
    }
    let image = Tensor::ones((1, 3, 8, 8), DType::F32, device)?;
    let kernel = Tensor::ones((4, 3, 3, 3), DType::F32, device)?;
    let sums = likeness_kernels::conv2d(&image, &kernel, 1, 1)?.flatten_all()?.to_vec1::<f32>()?;
    // Inside 27 ones are summed, on an edge 18, in a corner 12.
    let expected = 4.0 * (36.0 * 27.0 + 24.0 * 18.0 + 4.0 * 12.0);
    if sums.iter().sum::<f32>() != expected {
        return Err(wrong("convolution"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TaskErrorKind;

    fn thread() -> DeviceThread {
        DeviceThread::start(Device::Cpu).unwrap()
    }

    #[tokio::test]
    async fn closures_run_in_order_and_their_time_is_measured_per_handle() {
        let thread = thread();
        let metered = thread.metered();
        let nap = std::time::Duration::from_millis(5);
        metered
            .run(move |_| {
                std::thread::sleep(nap);
                Ok(())
            })
            .await
            .unwrap();
        assert!(metered.device_ms() >= 5);
        assert_eq!(thread.device_ms(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_a_transient_error_and_the_thread_lives_on() {
        let thread = thread();
        let error = thread.run::<()>(|_| panic!("index {} of 3", 7)).await.unwrap_err();
        assert_eq!(error.kind, TaskErrorKind::Transient);
        assert_eq!(error.chain(), "panicked: index 7 of 3");
        assert_eq!(thread.run(|_| Ok(1)).await.unwrap(), 1);
    }

    #[test]
    fn the_processor_passes_the_self_test() {
        self_test(&Device::Cpu).unwrap();
    }
}
