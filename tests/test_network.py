"""The network with what stands around it: the compiler, and a store's records."""
import pytest
import torch

from fwi_i2sb.models.unet import build_network, PRESETS


@pytest.mark.parametrize("name", ["tiny", "unet_ch16"])
def test_one_graph(name):
    "torch.compile takes the forward pass without falling back to Python, and changes nothing."
    torch.manual_seed(0)
    net = build_network(name, map_size=(24, 20)).eval()
    for parameter in net.parameters():
        if not parameter.any(): torch.nn.init.normal_(parameter, std=0.1)
    xt, t, cond = torch.randn(2, 1, 24, 20), torch.tensor([1.0, 900.0]), net.encode(torch.randn(2, 5, 50, 20))
    with torch.no_grad():
        graph = torch.compile(net, fullgraph=True, backend="eager")(xt, t, cond)
        torch.testing.assert_close(graph, net(xt, t, cond), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_weights_come_back(name):
    "A network's weights fit one built from the same name and numbers without memory of its own."
    with torch.device("meta"): empty = build_network(name)
    weights = build_network(name).state_dict()
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in weights.items()}
