"""The register's life: who may do what to a device in which state, and who hears of it. Without any process."""

from __future__ import annotations

import pytest

from vqshm import spec
from vqshm.errors import InvalidState, NegotiationError, RoleTaken, RuleError
from vqshm.host import ProcessId
from vqshm.host.coordination.slot import Slot
from vqshm.memory import Region
from vqshm.transport import DeviceSpec, Manifest, QueueSpec, plan, status

V1 = spec.mask(spec.VIRTIO_F_VERSION_1)
ACK, DRIVER, FEATURES_OK, DRIVER_OK = 1, 3, 11, 15
NEEDS_RESET, FAILED = spec.STATUS_DEVICE_NEEDS_RESET, spec.STATUS_FAILED
UP_TO = {0: (0,), ACK: (0, ACK), DRIVER: (0, ACK, DRIVER), FEATURES_OK: (0, ACK, DRIVER, FEATURES_OK)}
BEFORE_LIVE = sorted(UP_TO)


class Client:
    """Remembers what it was told; each request has a serial number of its own."""

    def __init__(self, pid: int) -> None:
        self.process = ProcessId(pid, 1000 + pid)
        self.serial = 0
        self.lagging = False
        self.answers: list[tuple[int, object]] = []
        self.events: list[tuple[str, dict]] = []

    def reply(self, message, fds=(), serial=None):
        value = message["value"] if message["type"] == "ok" else message["kind"]
        self.answers.append((self.serial if serial is None else serial, value))

    def event(self, what, **facts):
        self.events.append((what, facts))

    def heard(self) -> list[str]:
        names = [what for what, _ in self.events]
        self.events.clear()
        return names


class Game:
    """A slot, and moves to play on it."""

    def __init__(self, restart: str = "reset") -> None:
        layout = plan([DeviceSpec("echo0", 1, (QueueSpec(8, 4096),), config_bytes=16, restart=restart)])
        manifest = Manifest(Region(bytearray(layout.manifest_bytes)), layout)
        self.cells = manifest.device(0)
        self.config = manifest.config(0)
        self.slot = Slot(layout.devices[0], self.cells, self.config, [], [])
        self.clients = 0

    def driver(self) -> Client:
        client = self._client()
        self.slot.attach_driver(client)
        self.slot.introduce()
        return client

    def device(self, offered: int = V1, config: bytes = b"") -> Client:
        client = self._client()
        self.slot.attach_device(client, offered, config)
        self.slot.introduce()
        return client

    def _client(self) -> Client:
        self.clients += 1
        return Client(self.clients)

    def write(self, driver: Client, *values: int, features: int = V1) -> None:
        for value in values:
            driver.serial += 1
            if value == FEATURES_OK:
                self.slot.write_features(driver, features)
                driver.serial += 1
            self.slot.write_status(driver, value)

    def live(self, features: int = V1) -> tuple[Client, Client]:
        """Driver and device, the device started."""
        device, driver = self.device(features), self.driver()
        self.write(driver, 0, ACK, DRIVER, FEATURES_OK, DRIVER_OK, features=features)
        device.events.clear()
        driver.events.clear()
        driver.answers.clear()
        return driver, device

    @property
    def status(self) -> int:
        assert self.cells.status == self.slot.attached()["status"]
        return self.cells.status


@pytest.fixture
def game():
    return Game()


# -- roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver_first", [True, False])
def test_the_driver_hears_of_its_device_whoever_comes_first(game, driver_first):
    if driver_first:
        driver, device = game.driver(), game.device()
    else:
        device, driver = game.device(), game.driver()
    assert driver.events == [("peer_attached", {**device.process._asdict(), "features": V1})]
    assert device.events == []


def test_a_role_is_held_by_one(game):
    driver, device = game.driver(), game.device()
    with pytest.raises(RoleTaken, match="process 1"):
        game.driver()
    with pytest.raises(RoleTaken, match="process 2"):
        game.device()
    game.slot.lost(driver)
    game.slot.lost(device)
    game.driver()
    game.device()


def test_the_cells_show_who_holds_the_roles(game):
    driver, device = game.driver(), game.device()
    shown = game.cells.snapshot()
    assert (shown["driver_pid"], shown["driver_start_time"]) == driver.process
    assert (shown["device_pid"], shown["device_start_time"]) == device.process
    assert shown["offered"] == V1
    game.slot.lost(driver)
    game.slot.lost(device)
    shown = game.cells.snapshot()
    assert (shown["driver_pid"], shown["device_pid"], shown["offered"], shown["status"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "offered", [0, 1, spec.mask(spec.VIRTIO_F_EVENT_IDX), V1 | spec.mask(spec.VIRTIO_F_RING_PACKED)]
)
def test_an_offer_that_none_may_make_takes_no_role(game, offered):
    with pytest.raises(NegotiationError):
        game.device(offered)
    game.device()


def test_a_configuration_that_does_not_fit_takes_no_role(game):
    with pytest.raises(RuleError):
        game.device(config=bytes(17))
    game.device(config=b"0123456789abcdef")
    assert game.config.read(0, 16) == b"0123456789abcdef"


# -- the way up --------------------------------------------------------------------------------------------------------


def test_the_device_is_started_when_the_driver_sets_driver_ok(game):
    device, driver = game.device(), game.driver()
    game.write(driver, 0, ACK, DRIVER, FEATURES_OK)
    assert device.events == []
    game.write(driver, DRIVER_OK)
    assert device.events == [("start", {**driver.process._asdict(), "features": V1})]
    assert [value for _, value in driver.answers] == [0, ACK, DRIVER, DRIVER, FEATURES_OK, DRIVER_OK]
    assert (game.status, game.cells.accepted) == (DRIVER_OK, V1)


def test_every_request_is_answered_with_its_own_number(game):
    device, driver = game.device(), game.driver()
    game.write(driver, 0, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert [serial for serial, _ in driver.answers] == list(range(1, 7))
    assert device.answers == []


@pytest.mark.parametrize("bits", [0, V1 | 1, 1 << 63])
def test_features_that_were_not_offered_leave_the_register_alone(game, bits):
    game.device()
    driver = game.driver()
    game.write(driver, 0, ACK, DRIVER)
    game.slot.write_features(driver, bits)
    with pytest.raises(NegotiationError):
        game.slot.write_status(driver, FEATURES_OK)
    assert game.status == DRIVER


@pytest.mark.parametrize("reached", [0, ACK, FEATURES_OK])
def test_features_are_written_between_driver_and_features_ok_only(game, reached):
    game.device()
    driver = game.driver()
    game.write(driver, *UP_TO[reached])
    with pytest.raises(InvalidState):
        game.slot.write_features(driver, V1)


def test_without_a_device_nothing_is_negotiated(game):
    driver = game.driver()
    game.write(driver, 0, ACK, DRIVER)
    game.slot.write_features(driver, V1)
    with pytest.raises(InvalidState, match="no device"):
        game.slot.write_status(driver, FEATURES_OK)
    assert game.status == DRIVER


def test_a_device_that_left_after_features_ok_is_not_started(game):
    device, driver = game.device(), game.driver()
    game.write(driver, *UP_TO[FEATURES_OK])
    game.slot.lost(device)
    with pytest.raises(InvalidState, match="gone"):
        game.slot.write_status(driver, DRIVER_OK)
    assert game.status == FEATURES_OK


@pytest.mark.fault("B14")
def test_features_offered_by_one_device_are_not_taken_for_those_of_its_successor(game):
    rich = V1 | spec.mask(spec.VIRTIO_F_EVENT_IDX)
    device, driver = game.device(rich), game.driver()
    game.write(driver, 0, ACK, DRIVER)
    game.slot.write_features(driver, rich)
    game.slot.write_status(driver, FEATURES_OK)
    game.slot.lost(device)
    successor = game.device(V1)
    with pytest.raises(NegotiationError):
        game.slot.write_status(driver, DRIVER_OK)
    assert successor.events == []


# -- reset -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", BEFORE_LIVE)
def test_a_device_that_was_not_started_is_reset_at_once(game, reached):
    device, driver = game.device(), game.driver()
    game.write(driver, *UP_TO[reached], 0)
    assert driver.answers[-1] == (driver.serial, 0)
    assert (device.events, game.status) == ([], 0)


def test_the_reset_of_a_running_device_is_answered_when_it_has_let_go(game):
    driver, device = game.live()
    game.write(driver, 0)
    asked = driver.serial
    assert (driver.answers, device.heard(), game.status) == ([], ["stop"], DRIVER_OK)
    driver.serial += 5  # whatever it asked meanwhile
    game.slot.stopped(device)
    assert driver.answers == [(asked, 0)]
    assert (game.status, game.cells.accepted) == (0, 0)
    assert driver.events == []


def test_a_reset_that_is_asked_for_again_stops_the_device_once_and_answers_the_last(game):
    driver, device = game.live()
    game.write(driver, 0, 0, 0)
    game.slot.stopped(device)
    assert device.heard() == ["stop"]
    assert driver.answers == [(driver.serial, 0)]


def test_after_a_reset_the_device_is_started_anew(game):
    driver, device = game.live()
    game.write(driver, 0)
    game.slot.stopped(device)
    game.write(driver, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert device.heard() == ["stop", "start"]


@pytest.mark.parametrize("bit", [FAILED, NEEDS_RESET])
def test_a_device_that_failed_is_reset_like_any_other(game, bit):
    driver, device = game.live()
    if bit == FAILED:
        game.write(driver, DRIVER_OK | FAILED)
    else:
        game.slot.needs_reset(device, "broken", 0)
    assert game.status == DRIVER_OK | bit
    game.write(driver, 0)
    game.slot.stopped(device)
    assert game.status == 0


# -- the device leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", BEFORE_LIVE)
def test_a_device_that_leaves_before_it_was_started_changes_no_status(game, reached):
    device, driver = game.device(), game.driver()
    game.write(driver, *UP_TO[reached])
    driver.heard()
    game.slot.lost(device)
    assert (driver.events, game.status) == ([("peer_gone", device.process._asdict())], reached)


def test_a_running_device_that_leaves_needs_a_reset_which_is_answered_at_once(game):
    driver, device = game.live()
    game.slot.lost(device)
    assert game.status == DRIVER_OK | NEEDS_RESET
    assert driver.events == [("peer_gone", device.process._asdict())]
    game.write(driver, 0)
    assert driver.answers == [(driver.serial, 0)]


def test_a_device_that_leaves_while_its_reset_is_awaited_completes_it(game):
    driver, device = game.live()
    game.write(driver, 0)
    game.slot.lost(device)
    assert driver.answers == [(driver.serial, 0)]
    assert driver.heard() == ["peer_gone"]
    assert game.status == 0


def test_a_successor_of_the_device_is_not_started_before_the_driver_says_so(game):
    driver, device = game.live()
    game.slot.lost(device)
    successor = game.device()
    assert driver.heard() == ["peer_gone", "peer_attached"]
    assert successor.events == []
    with pytest.raises(InvalidState):
        game.slot.stopped(successor)
    game.write(driver, 0, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert successor.heard() == ["start"]


def test_a_device_that_stops_by_itself_ends_the_session_and_is_there_for_the_next(game):
    driver, device = game.live()
    device.serial = 7
    game.slot.stopped(device)
    assert [serial for serial, _ in device.answers] == [7]
    assert driver.heard() == ["peer_gone", "peer_attached"]
    assert game.status == DRIVER_OK | NEEDS_RESET
    game.write(driver, 0, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert device.heard() == ["start"]


def test_a_device_stops_once(game):
    driver, device = game.live()
    game.write(driver, 0)
    game.slot.stopped(device)
    with pytest.raises(InvalidState):
        game.slot.stopped(device)


# -- the driver leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", BEFORE_LIVE)
def test_a_driver_that_leaves_before_the_device_was_started_leaves_it_reset(game, reached):
    device, driver = game.device(), game.driver()
    game.write(driver, *UP_TO[reached])
    game.slot.lost(driver)
    assert (device.events, game.status) == ([], 0)


def test_a_running_device_is_told_that_its_driver_left_and_reset_when_it_has_let_go(game):
    driver, device = game.live()
    game.slot.lost(driver)
    assert device.events == [("peer_gone", driver.process._asdict())]
    assert game.status == DRIVER_OK
    game.slot.stopped(device)
    assert game.status == 0


def test_a_driver_that_leaves_while_it_awaits_a_reset_is_not_answered(game):
    driver, device = game.live()
    game.write(driver, 0)
    game.slot.lost(driver)
    game.slot.stopped(device)
    assert (driver.answers, game.status) == ([], 0)
    assert device.heard() == ["stop", "peer_gone"]


def test_a_successor_of_the_driver_waits_until_the_device_has_let_go(game):
    driver, device = game.live()
    game.slot.lost(driver)
    successor = game.driver()
    game.write(successor, 0)
    assert successor.answers == []
    game.slot.stopped(device)
    assert successor.answers == [(successor.serial, 0)]
    game.write(successor, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert device.heard()[-1] == "start"


def test_a_successor_that_has_not_written_yet_finds_the_register_reset(game):
    driver, device = game.live()
    game.slot.lost(driver)
    successor = game.driver()
    game.slot.stopped(device)
    assert (game.status, successor.heard()) == (0, ["peer_attached"])


def test_a_successor_that_gives_up_is_no_news_for_the_device(game):
    driver, device = game.live()
    game.slot.lost(driver)
    for _ in range(10):
        successor = game.driver()
        game.write(successor, 0)
        game.slot.lost(successor)
    assert device.heard() == ["peer_gone", "stop"]
    game.slot.stopped(device)
    assert game.status == 0


def test_both_may_leave_in_any_order(game):
    for first in (0, 1):
        pair = game.live()
        game.slot.lost(pair[first])
        game.slot.lost(pair[1 - first])
        assert game.status == 0


def test_who_never_had_a_role_may_leave(game):
    driver, device = game.live()
    game.slot.lost(Client(99))
    assert (driver.events, device.events, game.status) == ([], [], DRIVER_OK)


# -- news --------------------------------------------------------------------------------------------------------------


def test_a_live_driver_is_told_that_the_device_needs_a_reset(game):
    driver, device = game.live()
    game.slot.needs_reset(device, "the chain loops", 3)
    assert driver.events == [("needs_reset", {"reason": "the chain loops", "queue": 3})]
    assert game.status == DRIVER_OK | NEEDS_RESET


def test_a_driver_that_is_not_live_reads_it_in_the_status(game):
    device, driver = game.device(), game.driver()
    game.write(driver, 0, ACK)
    driver.heard()
    game.slot.needs_reset(device, "early", 0)
    assert (driver.events, game.status) == ([], ACK | NEEDS_RESET)
    with pytest.raises(NegotiationError):
        game.slot.write_status(driver, DRIVER | NEEDS_RESET)
    game.write(driver, *UP_TO[DRIVER])


def test_a_live_driver_that_reads_is_told_of_a_changed_configuration(game):
    driver, device = game.live()
    game.slot.write_config(device, 2, b"xy")
    driver.lagging = True
    game.slot.write_config(device, 4, b"z")
    assert driver.heard() == ["config_changed"]
    assert game.config.read(0, 6) == b"\0\0xyz\0"
    with pytest.raises(RuleError):
        game.slot.write_config(device, 15, b"xy")


def test_no_order_of_moves_leads_to_a_state_that_is_none(game):
    """After any four moves the register stands for a state, and a new pair gets going."""
    moves = ["reset", "up", "device leaves", "driver leaves", "stopped", "needs reset", "failed"]
    for number in range(len(moves) ** 4):
        game = Game()
        driver, device = game.live()
        for position in range(4):
            play(game, driver, device, moves[number // len(moves) ** position % len(moves)])
            status.state_of(game.status)
        game.slot.lost(driver)
        game.slot.lost(device)
        driver, device = game.live()
        assert game.status == DRIVER_OK


def play(game, driver, device, move):
    try:
        match move:
            case "reset":
                game.write(driver, 0)
            case "up":
                game.write(driver, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
            case "device leaves":
                game.slot.lost(device)
            case "driver leaves":
                game.slot.lost(driver)
            case "stopped":
                game.slot.stopped(device)
            case "needs reset":
                game.slot.needs_reset(device, "x", 0)
            case "failed":
                game.write(driver, game.status | FAILED)
    except (InvalidState, NegotiationError):
        pass


# -- sessions that outlive their device --------------------------------------------------------------------------------


@pytest.fixture
def lasting():
    return Game("resume")


def orphaned(game, features=V1):
    driver, device = game.live(features)
    game.slot.lost(device)
    assert driver.events == [("peer_gone", {**device.process._asdict(), "resume": True})]
    assert (game.status, game.cells.orphaned, game.cells.resumed) == (DRIVER_OK, 1, 0)
    driver.events.clear()
    return driver


def test_a_session_goes_on_with_the_next_device(lasting):
    driver = orphaned(lasting)
    device = lasting.device()
    assert device.events == [("start", {**driver.process._asdict(), "features": V1, "resume": True})]
    assert driver.events == [("peer_attached", {**device.process._asdict(), "features": V1, "resume": True})]
    assert (lasting.status, lasting.cells.orphaned, lasting.cells.resumed) == (DRIVER_OK, 0, 1)
    lasting.slot.lost(device)  # and again
    assert lasting.cells.orphaned == 1
    lasting.device()
    assert lasting.cells.resumed == 2


def test_a_device_that_offers_less_than_was_agreed_on_cannot_go_on_and_the_session_waits(lasting):
    both = V1 | spec.mask(spec.VIRTIO_F_EVENT_IDX)
    driver = orphaned(lasting, both)
    with pytest.raises(NegotiationError):
        lasting.device(V1)
    assert driver.events == []
    assert lasting.cells.orphaned == 1
    assert lasting.device(both).heard() == ["start"]


def test_a_reset_ends_a_session_that_waits(lasting):
    driver = orphaned(lasting)
    lasting.write(driver, 0)
    assert driver.answers == [(driver.serial, 0)]
    assert (lasting.status, lasting.cells.orphaned) == (0, 0)
    device = lasting.device()
    assert device.events == []
    assert driver.events == [("peer_attached", {**device.process._asdict(), "features": V1})]


def test_a_session_that_waits_outlives_its_driver_too(lasting):
    driver = orphaned(lasting)
    lasting.slot.lost(driver)
    assert (lasting.status, lasting.cells.orphaned, lasting.cells.driver_pid) == (DRIVER_OK, 1, 0)
    successor = lasting.driver()
    assert successor.events == []
    device = lasting.device()
    who = driver.process._asdict()
    assert device.events == [("start", {**who, "features": V1, "resume": True}), ("peer_gone", who)]
    assert successor.events == [("peer_attached", {**device.process._asdict(), "features": V1})]
    lasting.write(successor, 0)
    assert successor.answers == []  # not before the device has let go
    lasting.slot.stopped(device)
    assert successor.answers == [(successor.serial, 0)]
    device.events.clear()
    lasting.write(successor, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert device.events == [("start", {**successor.process._asdict(), "features": V1})]


def test_a_driver_that_waits_for_its_turn_is_told_that_the_device_ended_before_it_was_through(lasting):
    driver, device = lasting.live()
    lasting.slot.lost(driver)
    successor = lasting.driver()
    lasting.write(successor, 0)
    successor.events.clear()
    lasting.slot.lost(device)
    assert successor.answers == [(successor.serial, "InvalidState")]
    assert successor.events == [("peer_gone", device.process._asdict())]
    assert lasting.cells.orphaned == 1
    with pytest.raises(InvalidState, match="another driver had left"):
        lasting.write(successor, 0)
    assert lasting.cells.orphaned == 1
    lasting.slot.lost(successor)
    assert lasting.cells.orphaned == 1
    assert lasting.device().heard() == ["start", "peer_gone"]


def test_what_nobody_will_come_for_is_given_up_without_a_driver_too(lasting):
    driver = orphaned(lasting)
    lasting.slot.lost(driver)
    successor = lasting.driver()
    lasting.slot.give_up("died too often")
    assert (lasting.status, lasting.cells.orphaned) == (0, 0)
    assert successor.events == []
    assert lasting.device().events == []


def test_a_driver_that_sets_failed_waits_no_longer(lasting):
    driver = orphaned(lasting)
    lasting.write(driver, DRIVER_OK | FAILED)
    assert lasting.cells.orphaned == 0
    assert lasting.device().events == []


def test_a_session_is_over_when_nobody_will_come(lasting):
    driver = orphaned(lasting)
    lasting.slot.give_up("died too often")
    assert driver.events == [("peer_gone", {"reason": "died too often"})]
    assert (lasting.status, lasting.cells.orphaned) == (DRIVER_OK | NEEDS_RESET, 0)
    assert lasting.device().events == []
    lasting.slot.give_up("once more")
    assert driver.heard() == ["peer_gone", "peer_attached"]
    lasting.write(driver, 0, ACK, DRIVER, FEATURES_OK, DRIVER_OK)
    assert lasting.status == DRIVER_OK


def test_what_needed_a_reset_is_not_resumed(lasting):
    driver, device = lasting.live()
    lasting.slot.needs_reset(device, "reason", 0)
    lasting.slot.lost(device)
    assert driver.heard() == ["needs_reset", "peer_gone"]
    assert lasting.cells.orphaned == 0


def test_a_device_that_dies_while_it_lets_go_is_not_resumed(lasting):
    driver, device = lasting.live()
    lasting.write(driver, 0)
    lasting.slot.lost(device)
    assert driver.answers == [(driver.serial, 0)]
    assert (lasting.status, lasting.cells.orphaned) == (0, 0)


def test_a_device_that_finishes_for_a_driver_that_died_has_a_successor_too(lasting):
    driver, device = lasting.live()
    lasting.slot.lost(driver)
    lasting.slot.lost(device)
    assert (lasting.status, lasting.cells.orphaned) == (DRIVER_OK, 1)
    assert lasting.device().heard() == ["start", "peer_gone"]
    assert (lasting.status, lasting.cells.orphaned) == (DRIVER_OK, 0)


@pytest.mark.parametrize("restart", ["reset", "fail"])
def test_under_other_policies_a_session_ends_with_its_device(restart):
    game = Game(restart)
    driver, device = game.live()
    game.slot.lost(device)
    assert driver.events == [("peer_gone", device.process._asdict())]
    assert (game.status, game.cells.orphaned) == (DRIVER_OK | NEEDS_RESET, 0)
