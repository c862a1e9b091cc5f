"""Demo: three processes move a real file through a real virtqueue, and prove that every byte arrived.

    command     `vqshm demo`: options, progress bar, exit status            needs click and rich
    report      the table and the last words                                needs rich
    run         starts the processes, watches over them, ends them; `children` is about each of them, and about signals
    roles       what the device and the driver process run
    stream      sends a file through a zblock device, many blocks in flight: good for any program
    source      which file: the one that is named, or one that every machine has

The coordinator process is `vqshm.host.coordination.launcher`'s.
"""
