module {
  func.func public @main(%arg0: tensor<4x8xf32>, %arg1: tensor<8x8xf32>, %arg2: tensor<8x8xbf16>) -> (tensor<4xf32>, tensor<8x8xbf16>) {
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.convert %arg0 : (tensor<4x8xf32>) -> tensor<4x8xbf16>
    %1 = stablehlo.convert %arg1 : (tensor<8x8xf32>) -> tensor<8x8xbf16>
    %2 = stablehlo.dot_general %0, %1, contracting_dims = [1] x [0] : (tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xf32>
    %3 = stablehlo.convert %2 : (tensor<4x8xf32>) -> tensor<4x8xbf16>
    %4 = stablehlo.tanh %3 : tensor<4x8xbf16>
    %5 = stablehlo.convert %4 : (tensor<4x8xbf16>) -> tensor<4x8xf32>
    %6 = stablehlo.reduce(%5 init: %cst) applies stablehlo.add across dimensions = [1] : (tensor<4x8xf32>, tensor<f32>) -> tensor<4xf32>
    %7 = stablehlo.convert %6 : (tensor<4xf32>) -> tensor<4xbf16>
    %8 = stablehlo.convert %7 : (tensor<4xbf16>) -> tensor<4xf32>
    %9 = stablehlo.dot_general %arg2, %arg2, contracting_dims = [1] x [0] : (tensor<8x8xbf16>, tensor<8x8xbf16>) -> tensor<8x8xf32>
    %10 = stablehlo.convert %9 : (tensor<8x8xf32>) -> tensor<8x8xbf16>
    return %8, %10 : tensor<4xf32>, tensor<8x8xbf16>
  }
}
